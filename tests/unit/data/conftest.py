"""Helpers that write files and read their rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tunesmith.data.sources import Row, read_rows
from tunesmith.recipe.data_source import FileSource

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
