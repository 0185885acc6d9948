"""Helpers that write files and read their rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tunesmith.data.sources import Row, read_rows
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import Recipe

per_example = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def files(*names: str) -> FileSource:
    return FileSource(file=names[0] if len(names) == 1 else names)


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., list[Row]]:
    """Return a function that writes files, given as name__ext=content, and reads their rows as one source."""

    def write_and_read(**contents: bytes | str) -> list[Row]:
        names = [name.replace("__", ".") for name in contents]
        for name, content in zip(names, contents.values(), strict=True):
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return list(read_rows(files(*names), folder=tmp_path))

    return write_and_read


def values(result: list[Row]) -> list[dict[str, Any]]:
    return [row.values for row in result]


def recipe(seed: int = 0, **data: Any) -> Recipe:
    """Return a recipe whose rows have a question and an answer, with other settings of `data`."""
    section = {
        "source": {"file": "rows.jsonl"}, "task": "completion", "prompt": "{question}", "response": "{answer}",
        "split": {"valid": 0.2, "test": 0.2}, "max_dropped_fraction": 0.9, **data,
    }  # fmt: skip
    section = {key: value for key, value in section.items() if value is not None}
    return Recipe.model_validate({
        "name": "x", "model": {"base": "org/model"}, "tuning": {"method": "full"}, "train": {"learning_rate": 1e-4},
        "data": section, "evaluate": {"metrics": ["exact_match"], "primary": "exact_match"}, "seed": seed,
    })  # fmt: skip
