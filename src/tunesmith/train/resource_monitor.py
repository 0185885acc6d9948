"""How much memory and processor training takes, sampled every few seconds beside it."""

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

ResourceSample = dict[str, float]
_GIB = 2**30
_SECONDS = 5.0
_MOST_SECONDS_ASKING = 4.0


@contextlib.contextmanager
def monitor_resources(
    keep: Callable[[ResourceSample], None], device: torch.device, *, every_seconds: float = _SECONDS
) -> Iterator[None]:
    """Call `keep` with a sample every few seconds from a thread of its own, and once more at a good end.

    A sample is {time: seconds since 1970, memory_gib: resident in this process, cpu_cores: kept busy by it,
    host_memory_gib: not available to others, host_cpu: share of all cores}, and on a GPU {gpu_memory_gib, gpu: share
    of the time it was busy, of all processes}. cpu_cores, host_cpu and gpu are means since the sample before.

    The thread draws no random numbers and touches no weights. What goes wrong in it ends the sampling, nothing else.
    """
    sampler = _Sampler(keep, device)
    done = threading.Event()

    def work() -> None:
        while not done.wait(every_seconds):
            if not sampler.sample():
                return

    thread = threading.Thread(target=work, name="machine-use", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_MOST_SECONDS_ASKING + 1)
    sampler.sample()


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak that is counted begin at what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # Linux only, and not in every container
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this process has held: on the GPU where it computes there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))):
        return int(found.group(1)) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)


class _Sampler:
    def __init__(self, keep: Callable[[ResourceSample], None], device: torch.device) -> None:
        self._keep = keep
        self._gpu = _gpu_asker(device)
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only starts the clock
        psutil.cpu_percent()

    def sample(self) -> bool:
        """Keep one sample; say whether that went well."""
        with contextlib.suppress(OSError, ValueError, psutil.Error, subprocess.SubprocessError):
            host = psutil.virtual_memory()
            self._keep({
                "time": round(time.time(), 3),
                "memory_gib": round(self._process.memory_info().rss / _GIB, 4),
                "cpu_cores": round(self._process.cpu_percent() / 100, 3),
                "host_memory_gib": round((host.total - host.available) / _GIB, 4),
                "host_cpu": round(psutil.cpu_percent() / 100, 4),
                **(query_gpu(self._gpu) if self._gpu else {}),
            })  # fmt: skip
            return True
        return False


def _gpu_asker(device: torch.device) -> list[str] | None:
    """Return the command that tells the use of a GPU, None where there is no GPU or no such command."""
    program = shutil.which("nvidia-smi")
    if device.type != "cuda" or program is None:
        return None
    known = torch.cuda.get_device_properties(device)
    return [
        program, f"--id=GPU-{known.uuid}", "--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader,nounits",
    ]  # fmt: skip


def query_gpu(command: list[str]) -> ResourceSample:
    """Return what `nvidia-smi` says: {gpu_memory_gib, gpu}, without what it does not know (parts of a GPU)."""
    told = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=_MOST_SECONDS_ASKING,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout.split(",")
    sizes = {"gpu_memory_gib": 1024, "gpu": 100}  # MiB, percent
    pairs = zip(sizes.items(), told, strict=False)
    return {name: round(float(text) / size, 4) for (name, size), text in pairs if text.strip().isdigit()}
