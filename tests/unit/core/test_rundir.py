"""The error for a folder that is not a run suggests the run that was meant."""

import os
from pathlib import Path

import pytest

from tunesmith.core.errors import RecipeError
from tunesmith.core.rundir import RunDir, find_run
from tunesmith.fetch.reference import resolve


def begun(path: Path, seconds: int) -> Path:
    path.mkdir(parents=True)
    RunDir(path).resolved_recipe.write_text("{}")
    os.utime(RunDir(path).resolved_recipe, (seconds, seconds))
    return path


def test_the_run_above_or_the_newest_below_is_suggested(tmp_path: Path) -> None:
    begun(tmp_path / "runs" / "c" / "old", 1)
    newest = begun(tmp_path / "runs" / "c" / "new", 2)
    (newest / "train").mkdir()
    assert find_run(newest / "train") == newest
    assert find_run(tmp_path / "runs" / "c") == newest
    assert find_run(tmp_path / "runs") is None
    for place in (newest / "train", tmp_path / "runs" / "c"):
        for ask in (RunDir.existing, lambda path: resolve(str(path))):
            with pytest.raises(RecipeError) as caught:
                ask(place)
            assert str(newest) in str(caught.value.hint)
