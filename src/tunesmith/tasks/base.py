"""The interface of a task, the errors of its rows, and how templates are filled from a row's columns."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, time, timedelta
from numbers import Number
from typing import Any

from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.recipe.template import columns_in, parse_template
from tunesmith.tasks.cells import MISSING, InvalidJson, find_cell
from tunesmith.tasks.json_values import JsonNumber

# Types whose `str` is the text of one value. Numbers of numpy and decimals are registered as Number.
_SCALARS = (str, Number, date, time, timedelta)


class RowProblem(Exception):
    """A row cannot be used, and is dropped.

    Args:
        reason: what is wrong, in the same words for all rows with this problem, so that they can be counted.
        detail: what is wrong in this row, such as an excerpt.
        code: one of ERROR_CODES.
        hint: how to correct all rows with this problem.
        excess_length: the number of tokens of a row that is too long.
    """

    def __init__(
        self, reason: str, detail: str = "", *, code: str = "row", hint: str = "", excess_length: int = 0
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.code = code
        self.hint = hint
        self.excess_length = excess_length


class EmptyCell(RowProblem):
    """A required cell is empty."""

    def __init__(self, column: str) -> None:
        super().__init__(f"cell `{column}` is empty", code="empty-cell")
        self.column = column


class MissingColumn(EmptyCell):
    """A row has no such column, so its cell counts as empty."""


class Task(ABC):
    """Converts rows to turns, and turns to tokens. Training, evaluation and serving all use it."""

    stop_ids: tuple[int, ...]
    """Token ids that end an answer."""

    decoder_prefix_ids: tuple[int, ...] = ()
    """Token ids that the decoder of an encoder-decoder model starts from; empty if it starts from the prompt."""

    answer_lead: str = ""
    """Text that `decode_answer` removes from the beginning of an answer."""

    removes_thoughts: bool = False
    """Whether `decode_answer` removes thoughts, so that the end of an answer decides where its text begins."""

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the turns of a row; raise RowProblem."""

    @abstractmethod
    def render(self, turns: Sequence[Turn], example_id: str = "") -> TokenizedExample:
        """Tokenize turns and mark the trained tokens, checked by decoding them; raise RowProblem."""

    def truncate(self, example: TokenizedExample, max_tokens: int) -> tuple[TokenizedExample, str | None]:
        """Return an example cut to the recipe's limits, and the reason for the cut; None if it was not too long."""
        if len(example.input_ids) <= max_tokens:
            return example, None
        shorter = replace(example, input_ids=example.input_ids[:max_tokens], trained=example.trained[:max_tokens])
        return shorter, f"longer than {max_tokens} tokens"

    def split_blocks(self, example: TokenizedExample, max_tokens: int) -> list[tuple[Turn, ...]]:
        """Return the turns of each block of a document with more than `max_tokens` tokens.

        Empty if the example is not split: only documents with `too_long: split` are.
        """
        return []

    def find_control_token(self, turns: Sequence[Turn]) -> str | None:
        """Return the first control token in a row's text, which is encoded as plain text; None if there is none."""
        return None

    def changes_daily(self, turns: Sequence[Turn]) -> bool:
        """Return whether the ids of a row depend on the current date, because the chat template writes it."""
        return False

    @abstractmethod
    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the token ids that the model generates an answer from: all before the last trained turn."""

    @abstractmethod
    def reference(self, turns: Sequence[Turn]) -> str:
        """Return the reference answer to the prompt of `encode_prompt`."""

    @abstractmethod
    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without stop tokens."""

    @abstractmethod
    def prompt_turns(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the turns of a row's prompt, as in evaluation; the row needs no answer.

        Raises:
            RowProblem: as `parse`.
        """

    @abstractmethod
    def user_turn(self, text: str) -> tuple[Turn, ...]:
        """Return the turns of a prompt that a user types."""


def fill_template(template: str, row: Mapping[str, Any]) -> str:
    """Replace a template's columns with a row's values. Braces in values are literal.

    An empty or missing `{name?}` becomes empty text; a line that contains nothing else is removed.
    """
    lines: list[str] = [""]
    with_empty_column: set[int] = set()
    for text, column, optional in parse_template(template):
        first, *others = text.split("\n")
        lines[-1] += first
        lines += others
        if column is not None:
            value = optional_cell_text(row, column) if optional else cell_text(row, column)
            lines[-1] += value
            if not value:
                with_empty_column.add(len(lines) - 1)
    removed = [index in with_empty_column and not line.strip() for index, line in enumerate(lines)]
    filled: list[str] = []
    for line, is_removed, following in zip(lines, removed, [*lines[1:], ""], strict=True):
        if is_removed:
            if filled and not filled[-1].strip() and not following.strip():
                filled.pop()  # of the blank lines around it, keep one
        elif filled or line.strip() or not removed[0]:
            filled.append(line)
    return "\n".join(filled)


def fill_required(template: str, row: Mapping[str, Any]) -> str:
    """Fill a template; raise RowProblem if the result is blank."""
    text = fill_template(template, row)
    if not text.strip():
        raise RowProblem(f"all columns of the template {template!r} are empty", code="empty-cell")
    return text


def optional_cell_text(row: Mapping[str, Any], column: str) -> str:
    """Return a cell's text, empty if it is empty or missing; raise RowProblem if it has another type."""
    try:
        return cell_text(row, column)
    except EmptyCell:
        return ""


def fill_single_column(template: str | None, text: str) -> str:
    """Fill a template of one column with `text`; return `text` if there are several columns or none."""
    columns = set(columns_in(template)) if template else set()
    return fill_template(str(template), {columns.pop(): text}) if len(columns) == 1 else text


def cell_value(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column or of a path into one.

    Raises:
        MissingColumn: the row has no such cell.
        RowProblem: the path leads into text that is not JSON.
    """
    try:
        value = find_cell(row, column)
    except InvalidJson as error:
        raise RowProblem(f"cell `{error.column}` is not valid JSON", error.reason, code="wrong-cell") from error
    if value is MISSING:
        raise MissingColumn(column)
    return value


def optional_cell_value(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a cell, None if it is missing; raise RowProblem as `cell_value`."""
    try:
        return cell_value(row, column)
    except MissingColumn:
        return None


def cell_text(row: Mapping[str, Any], column: str) -> str:
    """Return a cell's text; raise MissingColumn, or RowProblem if the cell is empty, infinite, or a list or object."""
    value = cell_value(row, column)
    if isinstance(value, JsonNumber):
        return value.text
    if is_empty_cell(value):
        raise EmptyCell(column)
    if not isinstance(value, _SCALARS):
        inner = "0" if isinstance(value, list) else next(iter(value), "key") if isinstance(value, Mapping) else "key"
        hint = f"templates take text: name the part that you need, such as `{{{column}.{inner}}}`"
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            hint += f"; if it holds messages, use `task: chat` and `messages: {column}`"
        raise RowProblem(f"cell `{column}` holds a {type(value).__name__}, not text", code="wrong-cell", hint=hint)
    if value in (math.inf, -math.inf):
        raise RowProblem(f"cell `{column}` is infinite", code="wrong-cell")
    return format_value(value)


def is_empty_cell(value: Any) -> bool:
    """Return whether a cell is empty: null, NaN or blank text."""
    is_blank = isinstance(value, str) and not value.strip()
    return is_blank or value is None or (isinstance(value, Number) and value != value)


def format_value(value: Any) -> str:
    """Return the text of a scalar; booleans are `true` and `false`, as in JSON and Arrow."""
    return str(value).lower() if isinstance(value, bool) else str(value)
