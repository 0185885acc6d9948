"""Several training seeds: one verdict over rows and seeds, resumed after a kill, and seeds added or removed later."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.support.tiny import one_thread, recipe

from tunesmith import Registry, run_recipe
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_file
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict_reader import read_verdict
from tunesmith.pipeline.status import status_of

TRAIN = {"learning_rate": 0.01, "max_steps": 6, "epochs": 100, "examples_per_step": 8, "valid_every_steps": 3}
EVALUATE = {
    "metrics": ["perplexity", "rougeL"], "primary": "perplexity", "rows": 8, "max_new_tokens": 4,
    "guards": [{"metric": "perplexity", "max_drop": 1.0}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute in one thread, here and in a process that a test starts."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with one_thread():
        yield


@pytest.fixture
def file(tmp_path: Path, tiny: Path) -> Path:
    """A recipe whose LoRA weights and dropout depend on the seed."""
    tuning = {"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.1}
    return recipe(
        tmp_path, tiny, train=TRAIN, evaluate=EVALUATE, tuning=tuning, promote={"model": "tiny"}, replicates=3
    )


def models(run: RunDir) -> dict[str, str]:
    """Return the digests of the weights of all further seeds."""
    files = run.stage("replicate").rglob("model/adapter_model.safetensors")
    return {path.relative_to(run.path).as_posix(): digest_file(path) for path in files}


def test_a_kill_in_the_second_of_three_seeds_changes_nothing(tmp_path: Path, file: Path) -> None:
    run = RunDir(tmp_path / "killed")
    command = [sys.executable, "-m", "tunesmith", "replicate", str(file), "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = run.path / "replicate" / "seed-1" / "train" / "checkpoints" / "step-000003" / "manifest.json"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert run.manifest("train") is not None
    assert run.manifest("replicate") is None
    stages = {stage.stage: stage for stage in status_of(run).stages}
    assert stages["replicate"].state == "to do"
    assert stages["replicate"].done_of is not None
    assert stages["replicate"].done_of[1] == 12
    run_recipe(run.path, until="replicate")
    whole = run_recipe(file, out=tmp_path / "whole", until="replicate")
    assert len(set(models(whole).values())) == len(models(whole)) > 2
    assert models(run) == models(whole)


def test_seeds_are_added_to_a_finished_run_and_removed_again(tmp_path: Path, file: Path) -> None:
    run = run_recipe(file, ["replicates=null", "promote=null"], out=tmp_path / "run")
    one = read_verdict(run.verdict).primary
    assert one.seeds == ()
    trained = digest_file(run.stage("train") / "manifest.json")

    run_recipe(run.path, ["replicates=4", "promote.model=tiny"])
    four = read_verdict(run.verdict).primary
    assert [seed.seed for seed in four.seeds] == [0, 1, 2, 3]
    assert len({seed.tuned for seed in four.seeds}) == 4
    assert (four.seeds[0].tuned, four.seeds[0].low) == (one.tuned, one.low)
    ids = [[line["id"] for line in read_jsonl(run.evaluation(name) / "scores.jsonl")] for name in ("tuned", "seed-2")]
    assert ids[0] == ids[1]
    assert "4 seeds" in run.report.read_text()
    version = Registry.default().resolve("tiny@staging")  # the run's own model, whatever the others scored
    own = run.checkpoint((run.manifest("train") or {})["best_step"]) / "model" / "adapter_model.safetensors"
    assert digest_file(Registry.default().folder(version) / own.name) == digest_file(own)

    before = models(run)
    run_recipe(run.path, ["replicates=3"], until="evaluate")
    assert [seed.seed for seed in read_verdict(run.verdict).primary.seeds] == [0, 1, 2]
    run_recipe(run.path, ["replicates=null"], until="evaluate")
    assert read_verdict(run.verdict).primary == one
    assert models(run) == before
    assert digest_file(run.stage("train") / "manifest.json") == trained
    with raises(RecipeError, "missing-key") as error:
        run_recipe(run.path, until="replicate")
    assert error.value.where == "replicates"
