"""Describe the kind of machine that the numbers are from, without identifying it."""

import os
import subprocess
from pathlib import Path
from typing import Any

from tunesmith.estimate.hardware import detect_hardware
from tunesmith.pipeline.environment import environment

# The instruction sets that decide the speed of matrix products.
_ISA = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def machine() -> dict[str, Any]:
    """Return cores, processor, instruction sets, memory and GPU."""
    facts, hardware = environment(), detect_hardware()
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "").split()
    return {
        "cpu": facts["cpu"],
        "cores": facts["cores"],
        "isa": [name for name in _ISA if name in flags],
        "memory_gib": facts["memory_gib"],
        "gpu": _gpu_name() if hardware.device == "cuda" else None,
        "has_bf16": hardware.has_bf16,
        "versions": {name: facts[name] for name in ("tunesmith", "torch", "transformers", "peft") if facts[name]},
    }


def is_busy() -> bool:
    """Return whether other processes compute; the page warns about numbers from a busy machine."""
    return os.getloadavg()[0] > 0.3 * (os.cpu_count() or 1)


def describe_machine(facts: dict[str, Any]) -> str:
    """Return a line of text about the machine."""
    isa = ", ".join(facts["isa"]) or "no known vector instructions"
    cores = f"{facts['cores']} core{'' if facts['cores'] == 1 else 's'}"
    words = f"{cores} of {facts['cpu']} ({isa}), {facts['memory_gib']:.0f} GiB"
    return f"{words}; {facts['gpu']}" if facts["gpu"] else words


def _gpu_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return next(iter(output.splitlines()), "a GPU").strip()
