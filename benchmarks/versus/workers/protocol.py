"""The protocol between the harness and a worker. Standard library only, because the peers' processes use it too.

    python WORKER.py JOB.json

A job names two files: `log`, to which the worker adds a line of JSON after every step, and `result`, which it writes at
the end. After a failure, the result is {"error": text}.
"""

import json
import resource
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "trl", "peft", "torchtune", "tunesmith")


def run(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Do the job that the command line names, and write its result."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        facts = work(job)
    except BaseException as error:
        traceback.print_exc()
        facts = {"error": f"{type(error).__name__}: {first_line(str(error))}"}
    result = {**facts, **memory(), "versions": versions()}
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")
    sys.exit(1 if "error" in facts else 0)


def add_line(job: dict[str, Any], **line: Any) -> None:
    """Add a line to the job's log and flush it, because the harness measures when it appears."""
    with Path(job["log"]).open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def rows_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a job in training order."""
    with Path(job["rows"]).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file][: job["steps"] * job["examples_per_step"]]


def memory() -> dict[str, float]:
    """Return the peak memory of this process: resident, and on the GPU if it used one.

    The value of getrusage starts at the memory of the parent, so on Linux it is read from /proc.
    """
    unit = 2**30 if sys.platform == "darwin" else 2**20
    held = {"peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)}
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
        held = {"peak_rss_gib": round(peak / 2**20, 3)} if peak else held
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        held["peak_gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return held


def versions() -> dict[str, str]:
    """Return the installed versions of the compared packages."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def first_line(text: str, most: int = 300) -> str:
    """Return the first non-empty line of a message, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "no message")[:most]
