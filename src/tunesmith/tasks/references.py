"""The references of a row: the texts that an answer is compared with."""

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import Example
from tunesmith.recipe.columns import reference_columns
from tunesmith.recipe.schema import Data
from tunesmith.tasks.base import Task, is_empty_cell, optional_cell_text, optional_cell_value


def row_references(data: Data, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts in the columns of `data.references`, each once, without empty ones.

    Raises:
        RowProblem: a cell or an entry of its list is neither text nor a number.
    """
    texts = []
    for column in reference_columns(data):
        value = optional_cell_value(row, column)
        entries = value if isinstance(value, list | tuple) else [value]
        texts += [optional_cell_text({column: entry}, column) for entry in entries if not is_empty_cell(entry)]
    return tuple(dict.fromkeys(texts))


def scored_reference(task: Task, example: Example) -> str | list[str]:
    """Return the text that a row's answer is compared with, or a list of several: `response` if there is no other."""
    texts = example.references
    return list(texts) if len(texts) > 1 else texts[0] if texts else task.reference(example.turns)
