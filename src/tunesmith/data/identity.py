"""The id and the group of a row, which follow from the values of its source columns.

The text that a template puts around the values does not count, so a reworded prompt changes neither the split, nor the
chosen rows, nor the ids, and two prompts can be compared on the same rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.files import digest_of
from tunesmith.core.records import Turn
from tunesmith.data.split import normalize_text
from tunesmith.recipe.columns import prompt_columns, response_columns
from tunesmith.recipe.schema import ChatData, Data
from tunesmith.tasks.base import fill_template, optional_cell_text

_LENGTH = 16


def row_id(data: Data, row: Mapping[str, Any], turns: Sequence[Turn]) -> str:
    """Return a digest of all values of a row that the recipe uses: equal rows share it.

    With `messages` it covers every turn, learned or not.
    """
    spoken = [[turn.role, turn.text] for turn in _spoken(data, row, turns)]
    return short_digest([_values(row, (*prompt_columns(data), *response_columns(data))), spoken])


def block_id(whole: str, number: int, most: int) -> str:
    """Return the id of the `number`th block of at most `most` tokens of the document `whole`."""
    return short_digest([whole, number, most])


def group_id(data: Data, row: Mapping[str, Any], turns: Sequence[Turn]) -> str:
    """Return a digest of what a row asks, regardless of spaces and capitals.

    Rows that ask the same must stay in one split, or the test would hold questions that training saw. With `messages`
    a row asks what comes before its first learned answer.
    """
    spoken = _spoken(data, row, turns)
    first = next((index for index, turn in enumerate(spoken) if turn.trained), 0)
    asked = [normalize_text(turn.text) for turn in spoken[: max(first, 1)]]
    values = {column: normalize_text(value) for column, value in _values(row, prompt_columns(data)).items()}
    return short_digest([values, asked])


def short_digest(value: Any) -> str:
    """Return the digest that ids and groups are made of: 64 bits, in hexadecimal."""
    return digest_of(value)[:_LENGTH]


def _values(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str]:
    return {column: optional_cell_text(row, column) for column in columns}


def _spoken(data: Data, row: Mapping[str, Any], turns: Sequence[Turn]) -> Sequence[Turn]:
    """Return the turns that the row itself holds: not those that a template wrote."""
    if not isinstance(data, ChatData) or data.messages is None:
        return ()
    return turns[1:] if data.system is not None and fill_template(data.system, row).strip() else turns
