"""Sample the memory and processor use of training every few seconds, in a thread."""

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
_QUERY_SECONDS = 4.0


@contextlib.contextmanager
def monitor_resources(
    record: Callable[[ResourceSample], None], device: torch.device, *, every_seconds: float = 5.0
) -> Iterator[None]:
    """Call `record` with a sample every few seconds from a thread, and once more if the block ends without an error.

    A sample is {time: seconds since 1970, memory_gib: resident memory of this process, cpu_cores: cores that it keeps
    busy, host_memory_gib: memory in use on the machine, host_cpu: fraction of all its cores in use}, and on a GPU
    {gpu_memory_gib, gpu: fraction of the time it was busy} of all processes. cpu_cores, host_cpu and gpu are means
    since the previous sample.

    The thread draws no random numbers and touches no weights. An error in it ends the sampling and nothing else.
    """
    gpu_query, process, done = _gpu_query_command(device), psutil.Process(), threading.Event()
    process.cpu_percent()  # the first call only starts the measurement
    psutil.cpu_percent()

    def sample() -> bool:
        """Record one sample; return whether that succeeded."""
        with contextlib.suppress(OSError, ValueError, psutil.Error, subprocess.SubprocessError):
            host = psutil.virtual_memory()
            record({
                "time": round(time.time(), 3),
                "memory_gib": round(process.memory_info().rss / _GIB, 4),
                "cpu_cores": round(process.cpu_percent() / 100, 3),
                "host_memory_gib": round((host.total - host.available) / _GIB, 4),
                "host_cpu": round(psutil.cpu_percent() / 100, 4),
                **(query_gpu(gpu_query) if gpu_query else {}),
            })  # fmt: skip
            return True
        return False

    def work() -> None:
        while not done.wait(every_seconds) and sample():
            pass

    thread = threading.Thread(target=work, name="resource-monitor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_QUERY_SECONDS + 1)
    sample()


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of peak memory from the current use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # Linux only, and not in every container
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory of this process: allocated GPU memory if the device is a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))):
        return int(found.group(1)) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)


def _gpu_query_command(device: torch.device) -> list[str] | None:
    """Return the nvidia-smi command for the use of a GPU; None without a GPU or nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if device.type != "cuda" or program is None:
        return None
    uuid = torch.cuda.get_device_properties(device).uuid
    query = "--query-gpu=memory.used,utilization.gpu"
    return [program, f"--id=GPU-{uuid}", query, "--format=csv,noheader,nounits"]


def query_gpu(command: list[str]) -> ResourceSample:
    """Return {gpu_memory_gib, gpu} from `nvidia-smi`, without values that it cannot measure (on slices of a GPU)."""
    env = {**os.environ, "LC_ALL": "C"}
    output = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, timeout=_QUERY_SECONDS, env=env)
    sizes = {"gpu_memory_gib": 1024, "gpu": 100}  # MiB, percent
    pairs = zip(sizes.items(), output.split(","), strict=False)
    return {name: round(float(text) / size, 4) for (name, size), text in pairs if text.strip().isdigit()}
