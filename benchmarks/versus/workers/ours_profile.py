"""Run `tunesmith train` with torch's profiler around one step."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import protocol

_MOST = 20


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Train; return the profile of the step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    import tunesmith.train.train as stage
    from tunesmith.cli import main

    result: dict[str, Any] = {}
    train_steps = stage.train_steps
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])

    def looked_into(*args: Any, **settings: Any) -> Iterator[Any]:
        steps = train_steps(*args, **settings)
        for number in range(1 << 30):
            try:
                if number == job["step"]:
                    began = time.perf_counter()
                    with profile(activities=kinds) as seen:
                        report = next(steps)
                    result.update(step_seconds=time.perf_counter() - began, operations=_operations(seen))
                else:
                    report = next(steps)
            except StopIteration:
                return
            yield report

    stage.train_steps = looked_into
    sys.argv = ["tunesmith", *job["arguments"]]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"tunesmith train ended with exit code {end.code}") from end
    if not result:
        raise RuntimeError(f"training had no step {job['step']}")
    return result


def _operations(seen: Any) -> list[dict[str, Any]]:
    """Return the slowest operations with their shares of the total self time."""
    averages = seen.key_averages()
    on_gpu = any(operation.self_device_time_total > 0 for operation in averages)
    times = {
        operation.key: operation.self_device_time_total if on_gpu else operation.self_cpu_time_total
        for operation in averages
    }
    counts = {operation.key: operation.count for operation in averages}
    total = sum(times.values()) or 1.0
    order = sorted(times, key=lambda key: -times[key])[:_MOST]
    return [
        {
            "name": key,
            "share": round(times[key] / total, 4),
            "seconds": round(times[key] / 1e6, 4),
            "calls": counts[key],
        }
        for key in order
    ]


if __name__ == "__main__":
    protocol.run(work)
