"""The `data` section that a model's card records."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.model_folder import CARD, ModelFolder
from tunesmith.recipe.data_record import dump_data
from tunesmith.tasks.recorded_data import recorded_data

RECORD = {"task": "chat", "prompt": "{q}", "response": "{a}", "system": "Be brief."}


def model(folder: Path, card: Any) -> ModelFolder:
    (folder / CARD).write_text(json.dumps(card))
    return ModelFolder("model", folder)


def test_recorded_section_is_read(tmp_path: Path) -> None:
    data = recorded_data(model(tmp_path, {"data": RECORD}))
    assert data is not None
    assert RECORD.items() <= dump_data(data).items()


@pytest.mark.parametrize("card", [None, {}, {"data": None}])
def test_model_without_a_record_has_none(tmp_path: Path, card: Any) -> None:
    assert recorded_data(ModelFolder("model", tmp_path) if card is None else model(tmp_path, card)) is None


def test_record_of_another_version_is_an_error(tmp_path: Path) -> None:
    with raises(RecipeError, "other-version", where=str(tmp_path / CARD)):
        recorded_data(model(tmp_path, {"data": {**RECORD, "later_key": 1}}))
