"""The same steps on two GPUs as on one, over NCCL, and with parts beside the GPUs. Skipped where there are not two."""

import signal
from pathlib import Path

import pytest
import torch
from tests.integration.test_killed import steps_done, wait_until
from tests.integration.test_parallel import done, of_60_steps, same, together

from tunesmith import run_recipe
from tunesmith.core.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]
EXACT = "model.precision=fp32"
WAYS = [[f"launch.sharding={sharding}", *more] for sharding, *more in (
    ("none",), ("full",), ("node",), ("full", "launch.offload=true")
)]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_take_the_steps_of_one_and_go_on_after_a_signal(method: str, way: list[str], tmp_path: Path) -> None:
    file = of_60_steps(tmp_path, valid={"valid_every_steps": 20, "learning_rate": 0.001}, tuning={"method": method})
    alone, run = run_recipe(file, [EXACT], out=tmp_path / "alone"), RunDir(tmp_path / "run")
    command = ["-m", "tunesmith", "train", str(file), EXACT, *way, "--out", str(run)]
    process = together(2, *command)
    assert wait_until(process, lambda: steps_done(run) >= 7)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    done(together(2, *command))
    assert same(run, alone)
