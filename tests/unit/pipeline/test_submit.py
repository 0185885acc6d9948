"""What is fetched before jobs are put in line."""

from pathlib import Path

import pytest
from tests.support.tiny import recipe

from tunesmith.core.errors import DataError
from tunesmith.core.files import write_json
from tunesmith.core.rundir import RunDir
from tunesmith.pipeline.submit import fetch
from tunesmith.recipe.load import load_recipe


def test_rows_on_the_hub_are_not_fetched_once_they_are_prepared(tmp_path: Path, tokenizer_folder: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, tokenizer_folder), ["data.source={hub: nobody/has-it}"])
    run = RunDir(tmp_path / "run", origin=tmp_path)
    with pytest.raises(DataError, match="nobody/has-it"):
        fetch(loaded, run)
    write_json(run.stage("prepare") / "manifest.json", {})
    fetch(loaded, run)
