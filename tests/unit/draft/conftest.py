"""Helpers that write a data file and draft a recipe for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.draft.draft_recipe import draft_recipe
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe

Drafted = Callable[..., Recipe]
NO_MODEL = "nobody/not-here"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def drafted(tmp_path: Path) -> Drafted:
    """Return a function that writes rows and the recipe for them, and loads the recipe."""

    def draft(rows: list[dict[str, Any]], model: Path | str = NO_MODEL, *, file: str = "train.jsonl") -> Recipe:
        out = tmp_path / "recipe.yaml"
        source = write(tmp_path / file, rows)
        out.write_text(draft_recipe(str(source), out=out, model=str(model)), encoding="utf-8")
        return load_recipe(out)

    return draft
