"""A run with trackers is logged while it runs, and has the same weights as one without."""

from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe
from tests.unit.track.read_back import READERS

from tunesmith import plan_run, run_recipe
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_file
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.load import RecipeProblems
from tunesmith.track.tracker import TRACKERS

TRAIN = {"learning_rate": 0.01, "max_steps": 3, "examples_per_step": 8}


def weights(run: RunDir) -> dict[str, str]:
    return {path.parent.name: digest_file(path) for path in run.checkpoints.rglob("adapter_model.safetensors")}


@pytest.mark.slow
def test_tracked_run_is_logged_and_has_the_weights_of_an_untracked_run(tmp_path: Path, tiny: Path) -> None:
    plain = run_recipe(recipe(tmp_path, tiny, train=TRAIN), out=tmp_path / "plain", until="train")
    assert not (plain.path / "track").exists()
    file = recipe(tmp_path, tiny, train=TRAIN, trackers=["tensorboard", "mlflow"])
    tracked = run_recipe(file, out=tmp_path / "tracked")
    assert weights(tracked) == weights(plain)
    assert weights(plain)
    losses = [(line["step"], line["loss"]) for line in read_jsonl(tracked.metrics) if line["kind"] == "step"]
    for name in ("tensorboard", "mlflow"):
        points, _ = READERS[name](tracked.track(name))
        assert points["train/loss"] == [(step, pytest.approx(loss)) for step, loss in losses]
        assert len(points["verdict/rougeL/gain"]) == 1
        assert points["machine/memory_gib"]


def test_missing_tracker_package_is_refused_before_the_run(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", ("a_package_that_is_not_there",))
    file = recipe(tmp_path, tiny, trackers=["wandb"])
    for act in (plan_run, lambda path: run_recipe(path, out=tmp_path / "run")):
        with raises(RecipeError, "missing-package", "wandb", "a_package_that_is_not_there", where="trackers"):
            act(file)


def test_unknown_or_repeated_tracker_is_refused(tmp_path: Path, tiny: Path) -> None:
    for names, named in ((["wanbd"], "did you mean `wandb`"), (["wandb", "wandb"], "trackers")):
        with raises(RecipeProblems, "wrong-value", named):
            plan_run(recipe(tmp_path, tiny, trackers=names))
