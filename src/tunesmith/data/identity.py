"""Compute the id and the group of a row from the values of its source columns.

The text of the template does not count: a reworded prompt changes neither the split, nor the chosen rows, nor the ids,
so that two prompts can be compared on the same rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.files import digest_of
from tunesmith.core.records import Turn
from tunesmith.data.split import normalize_text
from tunesmith.recipe.columns import prompt_columns, response_columns
from tunesmith.recipe.schema import ChatData, Data
from tunesmith.tasks.base import fill_template, optional_cell_text
from tunesmith.tasks.tool_calls import TOOLS_ROLE

_LENGTH = 16


def row_id(data: Data, row: Mapping[str, Any], turns: Sequence[Turn]) -> str:
    """Return a digest of all values of a row that the recipe uses; equal rows have the same id.

    With `messages` it covers every turn, trained or not.
    """
    messages = [[turn.role, turn.full_text] for turn in _own_turns(data, row, turns)]
    return short_digest([_values(row, (*prompt_columns(data), *response_columns(data))), messages])


def block_id(document_id: str, number: int, max_tokens: int) -> str:
    """Return the id of a document's block number `number`, of at most `max_tokens` tokens."""
    return short_digest([document_id, number, max_tokens])


def group_id(data: Data, row: Mapping[str, Any], turns: Sequence[Turn]) -> str:
    """Return a digest of a row's prompt, regardless of whitespace and case.

    Rows with the same prompt must stay in one split; otherwise the test would contain prompts that were trained on.
    With `messages` the prompt is everything before the first trained answer.
    """
    messages = _own_turns(data, row, turns)
    first_trained = next((index for index, turn in enumerate(messages) if turn.trained), 0)
    prompt = [normalize_text(turn.full_text) for turn in messages[: max(first_trained, 1)]]
    values = {column: normalize_text(value) for column, value in _values(row, prompt_columns(data)).items()}
    return short_digest([values, prompt])


def short_digest(value: Any) -> str:
    """Return the digest of ids and groups: 64 bits in hexadecimal."""
    return digest_of(value)[:_LENGTH]


def _values(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str]:
    return {column: optional_cell_text(row, column) for column in columns}


def _own_turns(data: Data, row: Mapping[str, Any], turns: Sequence[Turn]) -> Sequence[Turn]:
    """Return the turns that the row itself contains, without those from a template."""
    if not isinstance(data, ChatData) or data.messages is None:
        return [turn for turn in turns if turn.role == TOOLS_ROLE]
    return turns[1:] if data.system is not None and fill_template(data.system, row).strip() else turns
