"""The compared systems and the settings of each."""

from dataclasses import dataclass, field
from typing import Any

Setting = dict[str, Any]


@dataclass(frozen=True, slots=True)
class System:
    """A trainer with a setting, such as `trl-fp32-1x8`. `family` is the trainer, `worker` the file that runs it."""

    family: str
    setting_name: str
    worker: str
    setting: Setting = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Return the name in results."""
        return f"{self.family}-{self.setting_name}" if self.setting_name else self.family

    @property
    def in_order(self) -> bool:
        """Whether it trains the rows of each step in the given order."""
        return not (self.setting.get("grouped") or self.setting.get("packed"))

    @property
    def is_fp32(self) -> bool:
        """Whether its losses should equal ours in fp32."""
        return self.setting.get("precision") == "fp32"


OURS = System("tunesmith", "", "ours_command.py")

_ON_CPU: dict[str, Setting] = {
    "fp32": {"precision": "fp32", "checkpointing": False},
    "fp32-1x8": {"precision": "fp32", "checkpointing": False, "rows": 1},
    "fp32-2x4": {"precision": "fp32", "checkpointing": False, "rows": 2},
    "fp32-grouped": {"precision": "fp32", "checkpointing": False, "grouped": True},
    "fp32-checkpointed": {"precision": "fp32", "checkpointing": True},
    "autocast": {"precision": "autocast", "checkpointing": False},
    "bf16": {"precision": "bf16", "checkpointing": False},
    "bf16-1x8": {"precision": "bf16", "checkpointing": False, "rows": 1},
    "bf16-grouped": {"precision": "bf16", "checkpointing": False, "grouped": True},
}
_ON_GPU: dict[str, Setting] = {
    "bf16": {"precision": "bf16", "checkpointing": False},
    "bf16-grouped": {"precision": "bf16", "checkpointing": False, "grouped": True},
    "bf16-compiled": {"precision": "bf16", "checkpointing": False, "compiled": True},
    "bf16-liger": {"precision": "bf16", "checkpointing": False, "liger": True},
    "autocast": {"precision": "autocast", "checkpointing": False},
    "fp32": {"precision": "fp32", "checkpointing": False},
}


def peers(*, gpu: bool, bf16: bool, full: bool, quick: bool) -> list[System]:
    """Return every peer and setting to try, the default of each first.

    Args:
        bf16: whether the machine computes in bf16. If bf16 is emulated, one setting with it is enough.
        full: full fine-tuning, in which bf16 means autocast over fp32 weights as in ours; pure bf16 is left out.
        quick: only a few.
    """
    settings = dict(_ON_GPU if gpu else _ON_CPU)
    if full:
        settings = {name: setting for name, setting in settings.items() if not (name.startswith("bf16") and not gpu)}
    if not gpu and not bf16:
        settings = {name: setting for name, setting in settings.items() if name.startswith("fp32") or name == "bf16"}
    precision = "bf16" if gpu else "fp32"
    side_by_side: dict[str, Setting] = {
        f"{precision}-padding-free": {"precision": precision, "checkpointing": False, "padding_free": True},
        f"{precision}-packed": {"precision": precision, "checkpointing": False, "packed": True},
    }
    if quick:
        settings, side_by_side = {precision: settings[precision]}, {}
    # Its default is bf16, which is too slow for a quick check if it is emulated.
    systems = [] if quick and not bf16 else [System("trl", "default", "trl_train.py")]
    if not gpu:  # the first example of its documentation
        systems.append(System("trl", "out-of-the-box", "trl_train.py", {"out_of_the_box": True}))
    systems += [System("trl", name, "trl_train.py", setting) for name, setting in {**settings, **side_by_side}.items()]
    # The plain trainer has no packing, and its default is fp32.
    systems += [System("transformers", name, "trainer_train.py", setting) for name, setting in settings.items()]
    if not full:
        systems += [
            System("torchtune", name, "torchtune_train.py", setting) for name, setting in _torchtune(gpu, quick).items()
        ]
        systems += [System("unsloth", "bf16", "unsloth_train.py", settings["bf16"])] if gpu and not quick else []
    return systems


def _torchtune(gpu: bool, quick: bool) -> dict[str, Setting]:
    precision = "bf16" if gpu else "fp32"
    plain: Setting = {"precision": precision, "checkpointing": False}
    if quick:
        return {precision: plain}
    tried = {precision: plain, f"{precision}-1x8": {**plain, "rows": 1}, f"{precision}-2x4": {**plain, "rows": 2}}
    return tried if gpu else {**tried, "bf16": {**plain, "precision": "bf16"}}
