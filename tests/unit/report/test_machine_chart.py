"""The chart of memory and utilization during training."""

import json
from pathlib import Path

import pytest
from tests.unit.report.conftest import build_run, page_of, plain

from tunesmith.report.collect import collect
from tunesmith.report.machine_chart import legend, utilization


def test_utilization_is_drawn_without_the_pause_between_two_sessions(tmp_path: Path) -> None:
    run = build_run(tmp_path)
    training = collect(run).training
    assert training is not None
    assert set(training.machine) == {"memory_gib", "cpu_cores", "host_memory_gib", "host_cpu"}
    times = [at for at, _ in training.machine["memory_gib"]]
    assert times == pytest.approx([*(8.0 * i for i in range(37)), *(8.0 * i for i in range(36, 74))])
    words = plain(page_of(run).words)
    assert dict(utilization(training)) == {"Busy processor cores": "1.8"}
    assert [label for _, label in legend(training)] == ["whole machine", "training"]
    assert "memory, GiB" in words
    assert "minutes of training" in words
    assert "GPU" not in words


def test_gpu_is_drawn_if_there_is_one(tmp_path: Path) -> None:
    run = build_run(tmp_path)
    with run.metrics.open("a", encoding="utf-8") as log:
        for second in (1.0, 2.0):
            line = {"kind": "machine", "step": 150, "time": 2e9 + second, "gpu_memory_gib": 11.5, "gpu": 0.8}
            log.write(json.dumps(line) + "\n")
    training = collect(run).training
    assert training is not None
    assert "GPU" in [label for _, label in legend(training)]
    assert ("GPU utilization", "80.0 %") in utilization(training)
    assert "80.0 %" in plain(page_of(run).words)
