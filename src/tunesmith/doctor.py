"""Examine this machine: packages, devices, memory, disk, and access to models.

Nothing is written, and no network is used. Every item is {state, value, text, hint}. The state is `ok`,
`note` (information, including missing things that only some recipes need) or `lacks` (a missing requirement).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST
from tunesmith.core.user_folders import cache_root, registry_root
from tunesmith.estimate.hardware import available_memory_gib
from tunesmith.pipeline.environment import environment

Item = tuple[str, dict[str, Any]]

_GIB = 2**30
_REQUIRED_PACKAGES = ("torch", "transformers", "peft", "datasets", "tokenizers", "safetensors", "numpy")
# Needed by the demo recipe: the model in fp32, its conversion, and a few checkpoints.
_MEMORY_GIB, _DISK_GIB = 3.0, 2.0
_COMPILERS = ("gcc", "clang", "cc")
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_STATE_LABELS = {"ok": "ok   ", "note": "     ", "lacks": "FAIL "}


def examine_machine() -> dict[str, Any]:
    """Return {ready, items: {name: {state, value, text, hint}}}; `ready` is true if no requirement is missing."""
    facts = environment()
    items = dict(
        [
            *_package_and_cpu_items(facts),
            *_torch_items(),
            *_memory_and_disk_items(facts),
            _compiler_item(),
            *_folder_items(),
            *_hub_items(),
            _item("package index", "note", None, "not checked; `pypi:` models are downloaded from it"),
        ]
    )
    return {"ready": all(item["state"] != "lacks" for item in items.values()), "items": items}


def machine_text(report: dict[str, Any]) -> str:
    """Return the report of `examine_machine` as text."""
    items = report["items"]
    width = max(len(name) for name in items)
    lines = []
    for name, item in items.items():
        lines.append(f"{_STATE_LABELS[item['state']]}  {name.ljust(width)}  {item['text']}")
        if item["hint"]:
            lines.append(f"{'':7}{'':{width}}  hint: {item['hint']}")
    missing = [name for name, item in items.items() if item["state"] == "lacks"]
    lines += ["", f"requirements not met: {', '.join(missing)}" if missing else "all requirements are met"]
    return "\n".join(lines)


def _item(name: str, state: str, value: Any, text: str | None = None, hint: str | None = None) -> Item:
    return name, {"state": state, "value": value, "text": str(value) if text is None else text, "hint": hint}


def _package_and_cpu_items(facts: dict[str, Any]) -> Iterator[Item]:
    yield _item("python", "ok", facts["python"], f"{facts['python']} ({facts['platform']})")
    version = facts["tunesmith"]
    yield _item("tunesmith", "ok", version, version or "not installed; running from its source folder")
    for name in _REQUIRED_PACKAGES:
        found = facts[name]
        yield _item(name, "ok", found) if found else _item(name, "lacks", None, "not installed", "run scripts/setup")
    yield _item("cpu", "ok", facts["cpu"])
    yield _item("cores", "ok", facts["cores"], f"{facts['cores']} available to this process")


def _torch_items() -> Iterator[Item]:
    """Yield the GPUs that torch can use, and whether the CPU supports bf16."""
    try:
        import torch
    except (ImportError, OSError) as error:
        problem = f"torch cannot be imported: {_first_line(error)}"
        yield _item("compute", "lacks", None, problem, "delete .venv, then run scripts/setup")
        return
    has_bf16 = bool(torch.cpu._is_avx512_bf16_supported())
    text = "supported" if has_bf16 else "not supported by this CPU, so `precision: auto` is fp32"
    yield _item("cpu bf16", "ok" if has_bf16 else "note", has_bf16, text)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        yield _gpu_item(torch, index)
    if not count:
        with_cuda = torch.version.cuda is not None
        hint = "install a driver, or check CUDA_VISIBLE_DEVICES" if with_cuda else None
        yield _item("gpu", "note", None, f"torch {torch.__version__} finds no GPU; models run on the CPU", hint)


def _gpu_item(torch: Any, index: int) -> Item:
    item, name = f"gpu {index}", torch.cuda.get_device_name(index)
    try:
        free, total = (round(size / _GIB, 1) for size in torch.cuda.mem_get_info(index))
        with torch.cuda.device(index):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    except RuntimeError as error:  # broken, or used exclusively by another process
        problem = f"{name} cannot be used: {_first_line(error)}"
        return _item(item, "lacks", None, problem, "exclude it with CUDA_VISIBLE_DEVICES")
    value = {"name": name, "memory_gib": total, "free_gib": free, "bf16": has_bf16}
    return _item(item, "ok", value, f"{name}, {total} GiB, {free} free, {'bf16' if has_bf16 else 'no bf16'}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _memory_and_disk_items(facts: dict[str, Any]) -> Iterator[Item]:
    total, available = facts["memory_gib"], round(available_memory_gib(), 1)
    value, text = {"total_gib": total, "available_gib": available}, f"{available} GiB available of {total}"
    state, hint = ("ok", None) if available >= _MEMORY_GIB else ("lacks", f"the demo needs about {_MEMORY_GIB:g} GiB")
    yield _item("memory", state, value, text, hint)
    for name, root in (("disk here", Path.cwd), ("disk of cache", cache_root)):
        try:
            folder = _existing_ancestor(root())
        except RecipeError:  # the user has no home folder, which `_folder_items` reports
            continue
        free = round(shutil.disk_usage(folder).free / _GIB, 1)
        needed = f"a run needs at least about {_DISK_GIB:g} GiB, depending on its checkpoints"
        state, hint = ("ok", None) if free >= _DISK_GIB else ("lacks", needed)
        yield _item(name, state, free, f"{free} GiB free in {folder}", hint)


def _compiler_item() -> Item:
    compiler = next((name for name in _COMPILERS if shutil.which(name)), None)
    text = compiler or "none, so faster kernels cannot be compiled"
    return _item("compiler", "ok" if compiler else "note", compiler, text)


def _folder_items() -> Iterator[Item]:
    try:
        folder, root = cache_root(), registry_root()
    except RecipeError as error:
        yield _item("folders", "lacks", None, error.message, error.hint)
        return
    models = sorted(path.parent.name for path in (folder / "models").glob(f"*/{MANIFEST}"))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / _GIB
    contents = f"{', '.join(models) or 'no model yet'}; {size:.1f} GiB"
    value = {"path": str(folder), "models": models, "gib": round(size, 2)}
    yield _writable_folder_item("cache", folder, value, f"{folder} ({contents})")
    yield _writable_folder_item("registry", root, str(root), f"{root}{'' if root.exists() else ' (none yet)'}")


def _hub_items() -> Iterator[Item]:
    from huggingface_hub import constants

    # Check only whether a token exists: it is never read here, so it can never be printed.
    token = any(os.environ.get(name) for name in _TOKEN_VARIABLES) or Path(constants.HF_TOKEN_PATH).exists()
    text = "present" if token else "none; public models and datasets need none"
    yield _item("hub token", "ok" if token else "note", token, text)
    offline = bool(constants.HF_HUB_OFFLINE)
    hint = "only models in the cache can be used; unset HF_HUB_OFFLINE to download others" if offline else None
    yield _item("hub", "note", {"offline": offline}, "offline: HF_HUB_OFFLINE is set" if offline else "online", hint)


def _existing_ancestor(path: Path) -> Path:
    """Return `path` or its nearest parent that is an existing folder."""
    return next((folder for folder in (path, *path.absolute().parents) if folder.is_dir()), Path("/"))


def _writable_folder_item(name: str, folder: Path, value: Any, text: str) -> Item:
    """Return the item of a folder that must be writable."""
    if os.access(_existing_ancestor(folder), os.W_OK):
        return _item(name, "ok", value, text)
    hint = "set TUNESMITH_CACHE or TUNESMITH_REGISTRY to another folder"
    return _item(name, "lacks", value, f"{text}, not writable", hint)
