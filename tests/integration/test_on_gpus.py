"""Two GPUs take the steps of one, over NCCL, with and without offloading. Skipped without two GPUs."""

import signal
from pathlib import Path

import pytest
import torch
from tests.integration.test_killed import steps_done, wait_until
from tests.integration.test_parallel import command_after, done, of_60_steps, same, together
from tests.integration.test_sharding import NO_ROOM

from tunesmith import run_recipe
from tunesmith.core.files import read_json
from tunesmith.core.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]
EXACT = "model.precision=fp32"
WAYS = [[f"launch.sharding={sharding}", *more] for sharding, *more in (
    ("none",), ("full",), ("node",), ("full", "launch.offload=true")
)]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_two_gpus_take_the_steps_of_one_and_resume_after_a_signal(method: str, way: list[str], tmp_path: Path) -> None:
    evaluate = {"metrics": ["perplexity"], "primary": "perplexity", "rows": 7}
    valid = {"valid_every_steps": 20, "learning_rate": 0.001}
    file = of_60_steps(tmp_path, valid=valid, tuning={"method": method}, evaluate=evaluate)
    alone, run = run_recipe(file, [EXACT], out=tmp_path / "alone"), RunDir(tmp_path / "run")
    asked = [str(file), EXACT, *way, "--out", str(run)]
    process = together(2, "-m", "tunesmith", "train", *asked)
    assert wait_until(process, lambda: steps_done(run) >= 7)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    done(together(2, command_after(NO_ROOM, tmp_path), "run", *asked))
    assert same(run, alone)
    many, one = (read_json(run.verdict)["primary"]["tuned"] for run in (run, alone))
    assert many == pytest.approx(one, rel=1e-2)
