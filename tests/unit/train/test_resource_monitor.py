"""What training takes of the machine: sampled beside it, and never in its way."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.unit.train.conftest import Start

from tunesmith.train.resource_monitor import ResourceSample, monitor_resources, query_gpu

CPU = torch.device("cpu")


def test_samples_say_what_this_process_takes() -> None:
    found: list[ResourceSample] = []
    ballast = torch.ones(2**26)  # 256 MiB
    with monitor_resources(found.append, CPU, every_seconds=0.2):
        began = time.process_time()
        while time.process_time() - began < 0.7:
            ballast.sum()
    assert len(found) >= 3
    assert {key for use in found for key in use} == {"time", "memory_gib", "cpu_cores", "host_memory_gib", "host_cpu"}
    assert [use["time"] for use in found] == sorted(use["time"] for use in found)
    assert all(0.25 < use["memory_gib"] < 8 for use in found)
    assert all(0 <= use["host_cpu"] <= 1 and use["host_memory_gib"] > 0 for use in found)
    assert max(use["cpu_cores"] for use in found) > 0


def test_it_ends_with_the_work_and_says_no_more_after_a_fault() -> None:
    found: list[ResourceSample] = []
    with pytest.raises(ZeroDivisionError), monitor_resources(found.append, CPU, every_seconds=60):
        raise ZeroDivisionError
    assert found == []
    assert "machine-use" not in {thread.name for thread in threading.enumerate()}


def test_a_log_that_cannot_be_written_is_not_the_trainings_fault() -> None:
    calls = []

    def full(use: ResourceSample) -> None:
        calls.append(use)
        raise OSError(28, "full")

    with monitor_resources(full, CPU, every_seconds=0.05):
        while not calls:
            time.sleep(0.01)
        time.sleep(0.3)
    assert len(calls) == 2  # once in the thread, which gives up, and once at the end


def test_a_gpu_is_asked_through_its_own_program(tmp_path: Path) -> None:
    for told, use in (("11776, 83", {"gpu_memory_gib": 11.5, "gpu": 0.83}), ("512, [N/A]", {"gpu_memory_gib": 0.5})):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho '{told}'\n")
        program.chmod(0o755)
        assert query_gpu([str(program)]) == use


def test_training_logs_it_and_its_weights_do_not_change(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.train import resource_monitor as module

    quiet = start(name="quiet")
    quiet.go()
    monkeypatch.setattr(module.monitor_resources.__wrapped__, "__kwdefaults__", {"every_seconds": 0.01})
    watched = start(name="watched")
    watched.go()
    lines = [json.loads(line) for line in watched.run.metrics.read_text().splitlines()]
    machine = [line for line in lines if line["kind"] == "machine"]
    assert len(machine) > 5
    assert [line["step"] for line in machine] == sorted(line["step"] for line in machine)
    assert watched.log() == quiet.log()
    assert watched.steps == quiet.steps
    assert all(watched.result(step) == quiet.result(step) for step in quiet.steps)
