"""Run a command of tunesmith in this process, so that its memory can be measured."""

import resource
import sys
from typing import Any

import protocol


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Run the command; if it trains, the log is the run's metrics.jsonl."""
    from tunesmith.cli import main

    sys.argv = ["tunesmith", *job["arguments"]]
    try:
        main()
    except SystemExit as end:
        if end.code not in (0, None, *job.get("good_exits", [])):
            raise RuntimeError(f"tunesmith {job['arguments'][0]} ended with exit code {end.code}") from end
        return {"exit": end.code or 0, **_helpers()}
    return {"exit": 0, **_helpers()}


def _helpers() -> dict[str, Any]:
    """Return the number of helper processes and the memory of the largest."""
    from tunesmith.data.workers import worker_count

    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"helpers": worker_count() if largest else 0, "helper_rss_gib": round(largest, 3)}


if __name__ == "__main__":
    protocol.run(work)
