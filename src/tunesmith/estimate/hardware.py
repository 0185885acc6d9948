"""Detect this machine's device, precision and available memory without importing torch, which `plan` has no time for.

Training detects them again with torch (`model/load.py`), and chooses the precision by the same rule.
"""

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

Precision = Literal["fp32", "bf16", "fp16"]
PrecisionSetting = Literal["auto"] | Precision
PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_GIB = 2**30
# GPU memory that a process uses besides its tensors: the CUDA context and the kernels of the libraries.
_CUDA_CONTEXT_GIB = 0.6
_PROCESS_CGROUPS = Path("/proc/self/cgroup")
_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
_V2_NAMES = ("memory.max", "memory.current", "")
_V1_NAMES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device to train on, and the memory that one process can use there, in GiB."""

    device: Literal["cpu", "cuda"]
    has_bf16: bool
    memory_gib: float


def detect_hardware() -> Hardware:
    """Return the first visible GPU, or the CPU if there is none."""
    return _gpu() or Hardware("cpu", "avx512_bf16" in cpu_flags(), process_memory_limit_gib())


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_precision(setting: PrecisionSetting, device: str, *, has_bf16: bool, quantized: bool) -> Precision:
    """Return the precision of matrix products; `auto` is bf16 if the hardware supports it.

    Args:
        quantized: the weights are stored in 4 or 8 bits. Then `auto` is fp16 on a GPU without bf16, because a GPU that
            is too small for the weights is too small for fp32 activations.
    """
    if setting != "auto":
        return setting
    if has_bf16:
        return "bf16"
    return "fp16" if quantized and device == "cuda" else "fp32"


def available_memory_gib() -> float:
    """Return the memory that a new process could allocate: the system's available memory, limited by control groups."""
    unused = (limit - used for limit, used in _control_groups())
    return max(0, min([int(psutil.virtual_memory().available), *unused])) / _GIB


def process_memory_limit_gib() -> float:
    """Return the memory that this process can use in total: the available memory and what the process holds already."""
    return available_memory_gib() + resident_gib()


def resident_gib() -> float:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss) / _GIB


def _control_groups() -> Iterator[tuple[int, int]]:
    """Yield (limit, used) in bytes for every control group (v1 and v2) that this process is in.

    The page cache is subtracted from the use: the kernel drops it when a process needs memory.
    """
    lines = _PROCESS_CGROUPS.read_text(encoding="utf-8").splitlines() if _PROCESS_CGROUPS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, names = (_V2, _V2_NAMES) if not controllers else (_V1, _V1_NAMES)
        limit, current, prefix = names
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            with contextlib.suppress(OSError, ValueError, KeyError):
                stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
                cached = int(stat[f"{prefix}active_file"]) + int(stat[f"{prefix}inactive_file"])
                used = int((folder / current).read_text(encoding="utf-8")) - cached
                yield int((folder / limit).read_text(encoding="utf-8")), used


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of an x86 CPU as Linux names them; nothing on other systems."""
    info = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not info.exists():
        return frozenset()
    lines = info.read_text(encoding="utf-8").splitlines()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _gpu() -> Hardware | None:
    """Return the first visible GPU from nvidia-smi; None if there is none, or its answer cannot be parsed."""
    program, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible in ("", "-1") or metadata.version("torch").endswith("+cpu"):
        return None
    first = [f"--id={visible.split(',')[0]}"] if visible else []
    query = [program, *first, "--query-gpu=memory.free,compute_cap", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout
        free, capability = answer.splitlines()[0].split(",")
        return Hardware("cuda", float(capability) >= 8.0, float(free) / 1024 - _CUDA_CONTEXT_GIB)
    return None
