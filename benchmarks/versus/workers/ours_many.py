"""Run a command of tunesmith that starts several processes."""

import subprocess
import sys
from typing import Any

import protocol


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Run the command; the log is the run's metrics.jsonl."""
    command = [sys.executable, "-m", "tunesmith", *job["arguments"]]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise RuntimeError(f"tunesmith {job['arguments'][0]} ended with exit code {done.returncode}")
    return {"exit": 0}


if __name__ == "__main__":
    protocol.run(work)
