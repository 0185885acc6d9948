"""What this machine has and lacks for tunesmith. Looks only: nothing is written, and no network is asked by default.

Every item is {state, value, text, hint}. `state` is ok, note (good to know, nothing to do) or lacks; what only some
recipes need is a note where it is missing.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST
from tunesmith.core.user_folders import cache_root, registry_root
from tunesmith.estimate.hardware import available_memory_gib
from tunesmith.pipeline.environment import environment

Item = dict[str, Any]

_GIB = 2**30
_NEEDED = ("torch", "transformers", "peft", "datasets", "tokenizers", "safetensors", "numpy")
# What the demo recipe takes: the model in fp32 and its conversion, and a few checkpoints.
_MEMORY_GIB, _DISK_GIB = 3.0, 2.0
_COMPILERS = ("gcc", "clang", "cc")
_TOKEN_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SECONDS_FOR_INDEX = 20
_MARKS = {"ok": "ok   ", "note": "     ", "lacks": "LACKS"}


def examine_machine(*, network: bool = False) -> dict[str, Any]:
    """Return {ready, items: {name: {state, value, text, hint}}}; `ready` says that nothing necessary is lacking.

    Args:
        network: ask the package index whether it answers, which takes up to 20 seconds where it does not.
    """
    facts = environment()
    items = dict(
        [
            *_versions(facts),
            *_processor(facts),
            *_torch(),
            *_room(facts),
            _compiler(),
            *_places(),
            *_hub(),
            _package_index(network),
        ]
    )
    return {"ready": all(item["state"] != "lacks" for item in items.values()), "items": items}


def machine_text(found: dict[str, Any]) -> str:
    """Return what `examine_machine` found as lines for people."""
    items = found["items"]
    width = max(len(name) for name in items)
    lines = []
    for name, item in items.items():
        lines.append(f"{_MARKS[item['state']]}  {name.ljust(width)}  {item['text']}")
        if item["hint"]:
            lines.append(f"{'':7}{'':{width}}  hint: {item['hint']}")
    lacking = [name for name, item in items.items() if item["state"] == "lacks"]
    lines += ["", f"lacking: {', '.join(lacking)}" if lacking else "nothing necessary is lacking"]
    return "\n".join(lines)


def _item(state: str, value: Any, text: str | None = None, hint: str | None = None) -> Item:
    return {"state": state, "value": value, "text": str(value) if text is None else text, "hint": hint}


def _versions(facts: dict[str, Any]) -> Iterator[tuple[str, Item]]:
    yield "python", _item("ok", facts["python"], f"{facts['python']} ({facts['platform']})")
    yield "tunesmith", _item("ok", facts["tunesmith"], facts["tunesmith"] or "not installed, run from its sources")
    for name in _NEEDED:
        if facts[name]:
            yield name, _item("ok", facts[name])
        else:
            yield name, _item("lacks", None, "not installed", "run scripts/setup")


def _processor(facts: dict[str, Any]) -> Iterator[tuple[str, Item]]:
    yield "cpu", _item("ok", facts["cpu"])
    yield "cores", _item("ok", facts["cores"], f"{facts['cores']} that this process may use")


def _torch() -> Iterator[tuple[str, Item]]:
    """Yield what only torch can tell: GPUs, and whether matrices are multiplied in bf16."""
    try:
        import torch
    except (ImportError, OSError) as error:
        problem = str(error).strip().split("\n")[0]
        yield "compute", _item("lacks", None, f"torch cannot be imported: {problem}", "remove .venv, run scripts/setup")
        return
    has_bf16 = bool(torch.cpu._is_avx512_bf16_supported())
    words = "multiplied by the CPU itself" if has_bf16 else "only imitated by this CPU, so `precision: auto` is fp32"
    yield "cpu bf16", _item("ok" if has_bf16 else "note", has_bf16, words)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        yield f"gpu {index}", _gpu(torch, index)
    if not count:
        built = torch.version.cuda is not None
        hint = "a driver is missing, or CUDA_VISIBLE_DEVICES hides them" if built else None
        yield "gpu", _item("note", None, f"none that torch {torch.__version__} can use; models run on the CPU", hint)


def _gpu(torch: Any, index: int) -> Item:
    name = torch.cuda.get_device_name(index)
    try:
        free, total = (round(size / _GIB, 1) for size in torch.cuda.mem_get_info(index))
        with torch.cuda.device(index):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    except RuntimeError as error:  # broken, or another process has it to itself
        problem = str(error).strip().split("\n")[0]
        return _item("lacks", None, f"{name} cannot be used: {problem}", "hide it with CUDA_VISIBLE_DEVICES")
    value = {"name": name, "memory_gib": total, "free_gib": free, "bf16": has_bf16}
    return _item("ok", value, f"{name}, {total} GiB, {free} free, {'bf16' if has_bf16 else 'no bf16'}")


def _room(facts: dict[str, Any]) -> Iterator[tuple[str, Item]]:
    total, available = facts["memory_gib"], round(available_memory_gib(), 1)
    enough = available >= _MEMORY_GIB
    yield (
        "memory",
        _item(
            "ok" if enough else "lacks",
            {"total_gib": total, "available_gib": available},
            f"{available} GiB available of {total}",
            None if enough else f"the demo takes about {_MEMORY_GIB:g} GiB",
        ),
    )
    for name, root in (("disk here", Path.cwd), ("disk of cache", cache_root)):
        try:
            place = _existing(root())
        except RecipeError:  # this user has no home, which `_places` reports
            continue
        free = round(shutil.disk_usage(place).free / _GIB, 1)
        enough = free >= _DISK_GIB
        hint = None if enough else f"a run takes about {_DISK_GIB:g} GiB and more, depending on its checkpoints"
        yield name, _item("ok" if enough else "lacks", free, f"{free} GiB free in {place}", hint)


def _compiler() -> tuple[str, Item]:
    found = next((name for name in _COMPILERS if shutil.which(name)), None)
    return "compiler", _item("ok" if found else "note", found, found or "none, so nothing is compiled to run faster")


def _places() -> Iterator[tuple[str, Item]]:
    try:
        folder, root = cache_root(), registry_root()
    except RecipeError as error:
        yield "folders", _item("lacks", None, error.message, error.hint)
        return
    models = sorted(path.parent.name for path in (folder / "models").glob(f"*/{MANIFEST}"))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / _GIB
    holds = f"{', '.join(models) or 'no model yet'}; {size:.1f} GiB"
    value = {"path": str(folder), "models": models, "gib": round(size, 2)}
    yield "cache", _kept_in(folder, value, f"{folder} ({holds})")
    yield "registry", _kept_in(root, str(root), f"{root}{'' if root.exists() else ' (none yet)'}")


def _hub() -> Iterator[tuple[str, Item]]:
    from huggingface_hub import constants

    # Only whether there is one: a token is never read here, so it can never be shown.
    token = any(os.environ.get(name) for name in _TOKEN_NAMES) or Path(constants.HF_TOKEN_PATH).exists()
    words = "present" if token else "none; public models and datasets need none"
    yield "hub token", _item("ok" if token else "note", token, words)
    offline = bool(constants.HF_HUB_OFFLINE)
    hint = "what is not in the cache cannot be had; unset HF_HUB_OFFLINE to ask the hub" if offline else None
    yield "hub", _item("note", {"offline": offline}, "HF_HUB_OFFLINE is set" if offline else "will be asked", hint)


def _package_index(network: bool) -> tuple[str, Item]:
    if not network:
        return "package index", _item("note", None, "not asked; `pypi:` models come from it")
    # pip itself, because only pip knows all places in which an index and a proxy can be configured.
    command = [sys.executable, "-m", "pip", "index", "versions", "pip", "--retries", "0", "--timeout", "5"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS_FOR_INDEX)
        answers = done.returncode == 0
    except subprocess.TimeoutExpired:
        answers = False
    hint = None if answers else "check the network, PIP_INDEX_URL and the proxy; or copy the cache from another machine"
    words = "answers" if answers else "does not answer"
    return "package index", _item("ok" if answers else "lacks", answers, words, hint)


def _existing(path: Path) -> Path:
    """Return the nearest folder at or above `path` that is there."""
    return next((place for place in (path, *path.absolute().parents) if place.is_dir()), Path("/"))


def _kept_in(folder: Path, value: Any, text: str) -> Item:
    """Return the item of a folder that has to be writable."""
    if os.access(_existing(folder), os.W_OK):
        return _item("ok", value, text)
    return _item("lacks", value, f"{text}, not writable", "set TUNESMITH_CACHE or TUNESMITH_REGISTRY to another folder")
