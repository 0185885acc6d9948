"""The machine that a run starts on, and the versions of the packages there."""

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.core.files import read_json, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.estimate.hardware import available_cores

_PACKAGES = (
    "tunesmith", "torch", "transformers", "peft", "bitsandbytes", "datasets", "tokenizers", "safetensors", "numpy",
)  # fmt: skip


def write_environment(run: RunDir) -> None:
    """Add this machine and its packages to the run's `environment.json`, unless an earlier start has added one.

    The file exists already, with the recipe and its folder: the run may have been submitted from another machine.
    """
    recorded = read_json(run.environment)
    if "started" not in recorded:
        write_json(run.environment, {**recorded, **environment()})


def environment() -> dict[str, Any]:
    """Return the machine's processor, cores and memory, and the installed versions, without importing a package."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpu": _cpu(),
        "cores": available_cores(),
        "memory_gib": round(memory, 1),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
