"""Sharded runs take the steps of one process, to the verdict and with any number of ranks."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.integration.test_killed import steps_done, wait_until
from tests.integration.test_parallel import LITTLE_MEMORY, command_after, done, of_60_steps, same, steps, together

from tunesmith import run_recipe
from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir

pytestmark = pytest.mark.slow
FULL = {"method": "full"}
IN_PARTS = "launch.sharding=full"
# The whole model does not fit into a rank that evaluates.
NO_ROOM = "from tunesmith.evaluate import model_scores\nmodel_scores.fits_for_inference = lambda *_: False"
# Rank 1 is slow to write its shard of a checkpoint.
SLOW_TO_WRITE = """
import os, time
from tunesmith.train import checkpoint
quick = checkpoint.write_shards
def slow(*told):
    if os.environ["RANK"] == "1":
        time.sleep({seconds})
    quick(*told)
checkpoint.write_shards = slow
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for a model stored in bf16, with fp32 masters of its shards."""
    valid = {"valid_every_steps": 20, "valid_metrics": ["chrf"], "valid_rows": 5, "select_best_by": "chrf"}
    file = of_60_steps(tmp_path_factory.mktemp("recipe"), valid=valid | {"learning_rate": 0.001}, tuning=FULL)
    weights = file.parent / "model" / "model.safetensors"
    stored = {name: weight.bfloat16() for name, weight in load_file(weights).items()}
    save_file(stored, weights, metadata={"format": "pt"})
    return file


@pytest.fixture(scope="module")
def alone(file: Path) -> RunDir:
    return run_recipe(file, out=file.parent / "alone")


@pytest.fixture(scope="module")
def stopped(file: Path) -> RunDir:
    """A run of two ranks, ended by a signal."""
    run = RunDir(file.parent / "stopped")
    process = together(2, "-m", "tunesmith", "train", str(file), IN_PARTS, "--out", str(run))
    assert wait_until(process, lambda: steps_done(run) >= 7)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert "stopped by SIGTERM; everything finished so far is kept" in said.decode()
    return run


def of_optimizer(checkpoint: Path) -> list[dict[str, Any]]:
    """Return the shapes of the optimizer state that each rank wrote."""
    shapes = []
    for path in sorted((checkpoint / "optimizer").iterdir()):
        with safe_open(path, "pt") as written:
            shapes.append({name: written.get_slice(name).get_shape() for name in written.keys()})  # noqa: SIM118
    return shapes


def test_a_sharded_run_reaches_its_verdict(file: Path, alone: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    done(together(2, "-m", "tunesmith", "run", str(file), IN_PARTS, "--out", str(run)))
    assert same(run, alone)
    manifest = run.manifest("train")
    assert manifest is not None
    assert (manifest["processes"], manifest["sharding"]) == (2, "full")
    assert read_json(run.verdict)["verdict"] == read_json(alone.verdict)["verdict"]
    answered = [[json.loads(line)["id"] for line in one.valid_answers(60).open()] for one in (run, alone)]
    assert answered[0] == answered[1]
    both = of_optimizer(run.checkpoint(60))
    matrix, vector = (f"model.layers.1.{name}.weight.exp_avg" for name in ("mlp.up_proj", "input_layernorm"))
    assert [shapes[matrix] for shapes in both] == [[32, 32], [32, 32]], "each has written its half"
    assert sum(vector in shapes for shapes in both) == 1, "what all have is written once"


@pytest.mark.parametrize("world", [1, 3])
def test_any_number_of_ranks_resumes(
    world: int, stopped: RunDir, file: Path, alone: RunDir, recwarn: pytest.WarningsRecorder
) -> None:
    run = RunDir(file.parent / f"{world}-go-on")
    shutil.copytree(stopped.path, run.path)
    before = steps_done(run)
    if world == 1:
        run_recipe(file, out=run.path)
        assert not [one for one in recwarn if "torch.distributed" in str(one.message)]
    else:
        said = done(together(world, "-m", "tunesmith", "train", str(file), IN_PARTS, "--out", str(run)))
        assert f"resuming from step {before} of 60" in said
    assert same(run, alone)


def test_a_run_of_one_process_resumes_sharded(file: Path, alone: RunDir) -> None:
    run = RunDir(file.parent / "divided")
    shutil.copytree(alone.path, run.path)
    (run.stage("train") / "manifest.json").unlink()
    shutil.rmtree(run.checkpoint(60))
    by_node = ["launch.sharding=node", "launch.offload=true"]
    said = done(together(2, "-m", "tunesmith", "train", str(file), *by_node, "--out", str(run)))
    assert "resuming from step 55 of 60" in said
    assert same(run, alone)


def test_a_full_disk_on_one_machine_loses_nothing(file: Path, alone: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    # Only the optimizer shard of rank 1 exceeds this size.
    little = "if os.environ['RANK'] == '1':\n    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    process = together(
        2, command_after(f"import os, resource\n{little}", tmp_path), "train", str(file), IN_PARTS, "--out", str(run)
    )
    _, said = process.communicate(timeout=240)
    assert process.returncode != 0
    assert said.decode().count("step-000005: the file is too large for this disk") == 2, "both say what one has met"
    assert "exitcode  : 5" in said.decode()
    assert not list(run.checkpoints.glob("step-*")), "none is whole"
    assert 1 <= steps_done(run) < 60
    done(together(2, "-m", "tunesmith", "train", str(file), IN_PARTS, "--out", str(run)))
    assert same(run, alone)


def test_ranks_wait_for_a_slow_disk_on_one_machine(file: Path, alone: RunDir, tmp_path: Path) -> None:
    run, slow = RunDir(tmp_path / "run"), command_after(SLOW_TO_WRITE.format(seconds=0.5), tmp_path)
    done(together(2, slow, "train", str(file), IN_PARTS, "--out", str(run)))
    assert same(run, alone)


def test_a_hanging_disk_on_one_machine_ends_all(file: Path, alone: RunDir, tmp_path: Path) -> None:
    run, hangs = RunDir(tmp_path / "run"), command_after(SLOW_TO_WRITE.format(seconds=25), tmp_path)
    process = together(2, hangs, "train", str(file), IN_PARTS, "launch.timeout_minutes=0.2", "--out", str(run))
    _, said = process.communicate(timeout=240)
    assert "rank 0 of 2: another process of this run is gone or hangs" in said.decode()
    assert "exitcode  : 75" in said.decode()
    assert not list(run.checkpoints.glob("step-*")), "none is whole"
    done(together(2, "-m", "tunesmith", "train", str(file), IN_PARTS, "--out", str(run)))
    assert same(run, alone)


def test_out_of_memory_on_one_rank_ends_all_with_sharding(file: Path, tmp_path: Path) -> None:
    run, little = RunDir(tmp_path / "run"), command_after(LITTLE_MEMORY, tmp_path)
    process = together(2, little, "train", str(file), IN_PARTS, "--out", str(run))
    _, said = process.communicate(timeout=240)
    assert said.decode().count("out of memory with micro-batches of") == 2, "both say what one has met"
    assert "train.micro_batch_tokens" in said.decode()
    assert "exitcode  : 5" in said.decode()


@pytest.mark.parametrize("tuning", [{"method": "lora", "rank": 4}, {"method": "qlora", "rank": 4}])
def test_adapters_on_sharded_layers_match_one_process(tuning: dict[str, Any], tmp_path: Path) -> None:
    evaluate = {"metrics": ["rougeL", "perplexity"], "primary": "rougeL", "rows": 7, "max_new_tokens": 8}
    valid = {"valid_every_steps": 30, "activation_checkpointing": True}
    file = of_60_steps(tmp_path, valid=valid, evaluate=evaluate, tuning=tuning)
    alone = run_recipe(file, out=tmp_path / "alone")
    run = RunDir(tmp_path / "run")
    said = done(together(2, command_after(NO_ROOM, tmp_path), "run", str(file), IN_PARTS, "--out", str(run)))
    assert said.count("so it is sharded and generates slowly") == 2
    assert steps(run) == [pytest.approx(one, rel=1e-4) for one in steps(alone)]
    manifest, of_one = run.manifest("train"), alone.manifest("train")
    assert manifest is not None
    assert of_one is not None
    assert manifest["sharding"] == "full"
    assert manifest["all_parameters"] == of_one["all_parameters"]
    assert of_one["plain_path"] == {}
    stacks = {"fused LoRA": "the layers are sharded over processes"}
    assert manifest["plain_path"] == (stacks if tuning["method"] == "lora" else {})
    assert (run.checkpoint(60) / "model" / "adapter_model.safetensors").exists()
    for name in ("base", "tuned"):
        many, one = (list(read_jsonl(one.evaluation(name) / "scores.jsonl")) for one in (run, alone))
        assert [line["id"] for line in many] == [line["id"] for line in one]
        assert [line["log_likelihood"] for line in many] == pytest.approx(
            [line["log_likelihood"] for line in one], rel=1e-3
        )
        differ = [a["rougeL"] != pytest.approx(b["rougeL"]) for a, b in zip(many, one, strict=True)]
        assert sum(differ) <= 1, "rounding may turn a tie of two tokens"
