"""The record of a recipe's `data` section in a model's card: the columns and templates, not where the rows are from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import Data

UNKNOWN_SOURCE = FileSource(file="none")
"""The source in a section without a source of its own; no such file is read."""


def dump_data(data: Data) -> dict[str, Any]:
    """Return the record of a `data` section, as JSON values."""
    return data.model_dump(mode="json", exclude={"source", "valid", "test", "split"})


def load_data(record: Mapping[str, Any], where: Path) -> Data:
    """Return the `data` section of a record, with UNKNOWN_SOURCE and the default split.

    Args:
        where: the file that has the record.

    Raises:
        RecipeError: another version of tunesmith wrote the record, with keys that this one does not have.
    """
    try:
        return TypeAdapter[Data](Data).validate_python({**record, "source": UNKNOWN_SOURCE})
    except ValidationError as error:
        raise RecipeError(
            "the model's prompts cannot be read, because another version of tunesmith trained it",
            where=str(where),
            code="other-version",
            hint="use the version that trained it",
        ) from error
