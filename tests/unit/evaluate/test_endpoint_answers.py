"""An endpoint is not asked if it could not give the answers that the run has."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe

from tunesmith.core.errors import RecipeError
from tunesmith.evaluate.endpoint_answers import ask_endpoint
from tunesmith.inference.endpoint import Endpoint
from tunesmith.recipe.load import load_recipe

SAMPLED = {"metrics": ["rougeL"], "primary": "rougeL", "samples": 2, "sampling": {"temperature": 1.0}}
TEXT = {"source": {"file": "rows.jsonl"}, "task": "text", "text": "answer"}


@pytest.mark.parametrize("changes", [{"evaluate": SAMPLED}, {"data": TEXT}], ids=["samples", "documents"])
def test_samples_and_documents_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    loaded = load_recipe(recipe(tmp_path, Path("base"), **changes))
    with raises(RecipeError, "not-comparable", where="http://127.0.0.1:9/v1#m"):
        ask_endpoint(Endpoint("http://127.0.0.1:9/v1", "m"), loaded, [], tmp_path)
