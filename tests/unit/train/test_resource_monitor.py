"""The resource monitor samples this process and the machine, and never disturbs training."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.unit.train.conftest import MakeJob

from tunesmith.train.resource_monitor import ResourceSample, monitor_resources, query_gpu

CPU = torch.device("cpu")


def test_samples_measure_this_process() -> None:
    samples: list[ResourceSample] = []
    ballast = torch.ones(2**26)  # 256 MiB
    with monitor_resources(samples.append, CPU, every_seconds=0.2):
        began = time.process_time()
        while time.process_time() - began < 0.7:
            ballast.sum()
    assert len(samples) >= 3
    assert {key for sample in samples for key in sample} == {
        "time",
        "memory_gib",
        "cpu_cores",
        "host_memory_gib",
        "host_cpu",
    }
    assert [sample["time"] for sample in samples] == sorted(sample["time"] for sample in samples)
    assert all(0.25 < sample["memory_gib"] < 8 for sample in samples)
    assert all(0 <= sample["host_cpu"] <= 1 and sample["host_memory_gib"] > 0 for sample in samples)
    assert max(sample["cpu_cores"] for sample in samples) > 0


def test_monitor_ends_with_its_block_and_records_nothing_after_an_error() -> None:
    samples: list[ResourceSample] = []
    with pytest.raises(ZeroDivisionError), monitor_resources(samples.append, CPU, every_seconds=60):
        raise ZeroDivisionError
    assert samples == []
    assert "resource-monitor" not in {thread.name for thread in threading.enumerate()}


def test_monitor_stops_silently_if_recording_fails() -> None:
    calls = []

    def disk_full(sample: ResourceSample) -> None:
        calls.append(sample)
        raise OSError(28, "full")

    with monitor_resources(disk_full, CPU, every_seconds=0.05):
        while not calls:
            time.sleep(0.01)
        time.sleep(0.3)
    assert len(calls) == 2  # once in the thread, which then ends, and once at the end of the block


def test_gpu_use_is_read_from_nvidia_smi(tmp_path: Path) -> None:
    for output, expected in (
        ("11776, 83", {"gpu_memory_gib": 11.5, "gpu": 0.83}),
        ("512, [N/A]", {"gpu_memory_gib": 0.5}),
    ):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho '{output}'\n")
        program.chmod(0o755)
        assert query_gpu([str(program)]) == expected


def test_monitoring_does_not_change_training(new_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.train import resource_monitor as module

    default = new_job(name="default")
    default.train()
    monkeypatch.setattr(module.monitor_resources.__wrapped__, "__kwdefaults__", {"every_seconds": 0.01})
    monitored = new_job(name="monitored")
    monitored.train()
    lines = [json.loads(line) for line in monitored.run.metrics.read_text().splitlines()]
    machine = [line for line in lines if line["kind"] == "machine"]
    assert len(machine) > 5
    assert [line["step"] for line in machine] == sorted(line["step"] for line in machine)
    assert monitored.log() == default.log()
    assert monitored.steps == default.steps
    assert all(monitored.result(step) == default.result(step) for step in default.steps)
