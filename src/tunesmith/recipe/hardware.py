"""What this machine computes with and how much memory it has left, asked without torch: what `plan` has to know.

`model/load.py` asks torch itself when it comes to computing; the precision follows by the same rule from either answer.
"""

import contextlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

Precision = Literal["fp32", "bf16", "fp16"]
AskedPrecision = Literal["auto"] | Precision
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_GIB = 2**30
# What a process on a GPU takes beside its tensors: CUDA's own context and the libraries' kernels.
_CONTEXT_GIB = 0.6
_SECONDS_ASKING = 10


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where training would compute, and how many GiB a new process could get there."""

    device: Literal["cpu", "cuda"]
    has_bf16: bool
    memory_gib: float


def hardware() -> Hardware:
    """Return the first GPU that is visible, else the processor."""
    return _gpu() or Hardware("cpu", "avx512_bf16" in _processor_flags(), available_memory_gib())


def precision_of(asked: AskedPrecision, device: str, *, has_bf16: bool, quantized: bool) -> Precision:
    """Return what matrices are multiplied in; `auto` is bf16 where the machine computes in it.

    Args:
        quantized: the weights are kept in 4 or 8 bits, so `auto` is fp16 on a GPU without bf16: whoever needs room for
            weights has none for activations in fp32.
    """
    if asked != "auto":
        return asked
    if has_bf16:
        return "bf16"
    return "fp16" if quantized and device == "cuda" else "fp32"


def available_memory_gib() -> float:
    """Return the memory that a new process could get: what the system says is available, within its control group."""
    available = int(psutil.virtual_memory().available)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        available = min(available, int(text) - used)
    return available / _GIB


def _processor_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not info.exists():
        return frozenset()
    lines = info.read_text(encoding="utf-8").splitlines()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _gpu() -> Hardware | None:
    """Ask nvidia-smi for the first visible GPU; None where there is none, or it does not say."""
    program, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible in ("", "-1"):
        return None
    first = [f"--id={visible.split(',')[0]}"] if visible else []
    asked = [program, *first, "--query-gpu=memory.free,compute_cap", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=_SECONDS_ASKING).stdout
        free, capability = told.splitlines()[0].split(",")
        return Hardware("cuda", float(capability) >= 8.0, float(free) / 1024 - _CONTEXT_GIB)
    return None
