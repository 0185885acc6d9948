"""What this machine computes with and how much memory it has left, asked without torch: what `plan` has to know.

`model/load.py` asks torch itself when it comes to computing; the precision follows by the same rule from either answer.
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
# What a process on a GPU takes beside its tensors: CUDA's own context and the libraries' kernels.
_CONTEXT_GIB = 0.6
_SECONDS_ASKING = 10
_OWN_GROUPS = Path("/proc/self/cgroup")
_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
_V2_NAMES = ("memory.max", "memory.current", "")
_V1_NAMES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where training would compute, and how many GiB it could hold there."""

    device: Literal["cpu", "cuda"]
    has_bf16: bool
    memory_gib: float


def detect_hardware() -> Hardware:
    """Return the first GPU that is visible, else the processor."""
    return _gpu() or Hardware("cpu", "avx512_bf16" in _processor_flags(), process_memory_limit_gib())


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_precision(asked: PrecisionSetting, device: str, *, has_bf16: bool, quantized: bool) -> Precision:
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
    """Return the memory that a new process could get: what the system says is available, within its control groups."""
    left = (limit - used for limit, used in _control_groups())
    return max(0, min([int(psutil.virtual_memory().available), *left])) / _GIB


def process_memory_limit_gib() -> float:
    """Return how much a process could hold that does what this one does, and holds nothing yet."""
    return available_memory_gib() + resident_gib()


def resident_gib() -> float:
    """Return the memory that this process holds now."""
    return int(psutil.Process().memory_info().rss) / _GIB


def _control_groups() -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes in use that the kernel cannot drop) of every control group above this process, of both kinds.

    Pages of files that were read lately count as used, and are dropped as soon as somebody needs memory.
    """
    lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines() if _OWN_GROUPS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, names = (_V2, _V2_NAMES) if not controllers else (_V1, _V1_NAMES)
        limit, current, prefix = names
        group = root / path.strip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(root):
                break
            with contextlib.suppress(OSError, ValueError, KeyError):
                stat = dict(one.split() for one in (place / "memory.stat").read_text(encoding="utf-8").splitlines())
                cached = int(stat[f"{prefix}active_file"]) + int(stat[f"{prefix}inactive_file"])
                used = int((place / current).read_text(encoding="utf-8")) - cached
                yield int((place / limit).read_text(encoding="utf-8")), used


def _processor_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not info.exists():
        return frozenset()
    lines = info.read_text(encoding="utf-8").splitlines()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _gpu() -> Hardware | None:
    """Ask nvidia-smi for the first visible GPU; None where there is none, or it does not say."""
    program, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible in ("", "-1") or metadata.version("torch").endswith("+cpu"):
        return None
    first = [f"--id={visible.split(',')[0]}"] if visible else []
    asked = [program, *first, "--query-gpu=memory.free,compute_cap", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=_SECONDS_ASKING).stdout
        free, capability = told.splitlines()[0].split(",")
        return Hardware("cuda", float(capability) >= 8.0, float(free) / 1024 - _CONTEXT_GIB)
    return None
