"""What machine the numbers are from, in words that identify its kind and nobody."""

import os
import subprocess
from pathlib import Path
from typing import Any

from tunesmith.estimate.hardware import detect_hardware
from tunesmith.pipeline.environment import environment

# What decides how fast matrices are multiplied.
_ISA = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def machine() -> dict[str, Any]:
    """Return cores, processor, instruction sets, memory and GPU."""
    found, on = environment(), detect_hardware()
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "").split()
    return {
        "cpu": found["cpu"],
        "cores": found["cores"],
        "isa": [name for name in _ISA if name in flags],
        "memory_gib": found["memory_gib"],
        "gpu": _gpu_name() if on.device == "cuda" else None,
        "has_bf16": on.has_bf16,
        "versions": {name: found[name] for name in ("tunesmith", "torch", "transformers", "peft") if found[name]},
    }


def is_busy() -> bool:
    """Say whether others compute here: numbers from a busy machine are worth less, and the page says so."""
    return os.getloadavg()[0] > 0.3 * (os.cpu_count() or 1)


def describe_machine(found: dict[str, Any]) -> str:
    """Return the machine as a line of the page."""
    isa = ", ".join(found["isa"]) or "no vector instructions known to this page"
    cores = f"{found['cores']} core{'' if found['cores'] == 1 else 's'}"
    words = f"{cores} of {found['cpu']} ({isa}), {found['memory_gib']:.0f} GiB"
    return f"{words}; {found['gpu']}" if found["gpu"] else words


def _gpu_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return next(iter(told.splitlines()), "a GPU").strip()
