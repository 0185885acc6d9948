"""Record how fast this machine trains a model, so that the next plan can estimate the time."""

import contextlib
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import digest_of, read_json, write_json
from tunesmith.core.user_folders import cache_root
from tunesmith.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Speed:
    """The measured speed of one process.

    Attributes:
        tokens_per_second: in forward and backward passes.
        cores: the number of cores of the process; None if a GPU computes.
        update_seconds: the time of one optimizer update, which does not depend on the number of tokens.
        reading: tokens per second in forward passes that only measure a loss; None if it has not been measured.
        writing: generated tokens per second, with the time to read prompts; None if it has not been measured.
    """

    tokens_per_second: float
    cores: int | None = None
    update_seconds: float = 0.0
    reading: float | None = None
    writing: float | None = None

    def with_cores(self, cores: float | None) -> "Speed":
        """Return the speed with another number of cores.

        With fewer cores the speed falls in proportion. With more it stays the same, because how well training scales
        to more cores has not been measured.
        """
        share = min(1.0, cores / self.cores) if cores and self.cores else 1.0
        return replace(
            self,
            tokens_per_second=self.tokens_per_second * share,
            update_seconds=self.update_seconds / share,
            reading=self.reading and self.reading * share,
            writing=self.writing and self.writing * share,
        )

    def step_seconds(self, tokens: float, updated_share: float = 1.0) -> float:
        """Return the time of an optimizer step.

        Args:
            tokens: number of tokens that this process reads in the step.
            updated_share: the share of the trained parameters that this process updates.
        """
        return tokens / self.tokens_per_second + updated_share * self.update_seconds


def speed_key(model_digest: str, recipe: Recipe) -> str:
    """Return what identifies a speed: the model, how it is trained, and this machine."""
    return digest_of([model_digest, recipe.tuning.method, recipe.train.optimizer, platform.node()])[:24]


def save_speed(key: str, speed: Speed, *, alone: bool) -> None:
    """Record the speed of a finished training. A cache that cannot be written is ignored: the training is done.

    Args:
        key: from `speed_key`, as in the functions below.
        alone: whether the process trained alone. Processes of a group also wait for each other, so their speed is
            recorded only if there is none yet.
    """
    with contextlib.suppress(OSError, TunesmithError):
        recorded = load_speed(key)
        if alone or recorded is None:
            if recorded is not None:  # keep what this training did not measure
                speed = replace(speed, reading=speed.reading or recorded.reading, writing=recorded.writing)
            write_json(_file_of(key), asdict(speed))


def save_generation_speed(key: str, tokens_per_second: float) -> None:
    """Add the generation speed to the recorded speed of a model; do nothing if the model was never trained here."""
    with contextlib.suppress(OSError, TunesmithError):
        if recorded := load_speed(key):
            write_json(_file_of(key), asdict(replace(recorded, writing=tokens_per_second)))


def load_speed(key: str) -> Speed | None:
    """Return the speed of the last training; None if there was none."""
    path = _file_of(key)
    try:
        return Speed(**read_json(path)) if path.exists() else None
    except (OSError, TunesmithError, TypeError):
        return None


def _file_of(key: str) -> Path:
    return cache_root() / "speed" / f"{key}.json"
