"""What every task is, and how a template takes its values from a row."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, time, timedelta
from numbers import Number
from typing import Any, Self

from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.recipe.template import TemplatePiece, columns_in, parse_template

# What is one value and has one obvious text; numbers of numpy and decimals are Numbers too.
_PLAIN = (str, Number, date, time, timedelta)


class JsonNumber(float):
    """A number of a JSON file that keeps the digits of the file: `str` gives 12.50, 1E3 or -0 as it was written."""

    def __new__(cls, text: str) -> Self:
        """Read a number as JSON writes it; what is beyond a float's range becomes infinite and keeps its digits."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type["JsonNumber"], tuple[str]]:
        return JsonNumber, (self.text,)


class RowProblem(Exception):
    """One row cannot be used; `reason` is the same for all rows with the same trouble, so that they can be counted.

    `hint` says how to correct them all.
    """

    def __init__(self, reason: str, detail: str = "", *, hint: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.hint = hint


class EmptyCell(RowProblem):
    """A cell that a row needs holds nothing."""

    def __init__(self, column: str) -> None:
        super().__init__(f"cell `{column}` is empty")
        self.column = column


class MissingColumn(Exception):
    """A row has no such column."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


class Task(ABC):
    """Turns rows into turns and turns into tokens. The only such place for training, evaluation and serving."""

    stop_ids: tuple[int, ...]
    """Ids after which an answer is over."""

    decoder_prefix_ids: tuple[int, ...] = ()
    """What a decoder that has an encoder goes on from; others go on from the prompt itself."""

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the turns of a row; raise RowProblem or MissingColumn."""

    @abstractmethod
    def render(self, turns: Sequence[Turn], example_id: str = "") -> TokenizedExample:
        """Return ids and which of them are learned, proved by decoding; raise RowProblem."""

    def truncate(self, tokens: TokenizedExample, most: int) -> tuple[TokenizedExample, str | None]:
        """Return an example cut to `max_tokens_per_example`, and what was longer than allowed, or None."""
        if len(tokens.input_ids) <= most:
            return tokens, None
        cut = replace(tokens, input_ids=tokens.input_ids[:most], trained=tokens.trained[:most])
        return cut, f"longer than {most} tokens"

    def split_blocks(self, tokens: TokenizedExample, most: int) -> list[tuple[Turn, ...]]:
        """Return the turns of each block that an example of more than `most` tokens is learned in.

        There are none where it is one whole, as all are but documents with `too_long: split`.
        """
        return []

    def find_control_token(self, turns: Sequence[Turn]) -> str | None:
        """Return the first control token that a row's text spells, and that is encoded as letters; None without one."""
        return None

    @abstractmethod
    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids that a model is given to answer: all before the last trained turn."""

    @abstractmethod
    def reference(self, turns: Sequence[Turn]) -> str:
        """Return the answer that `prompt` asks for."""

    @abstractmethod
    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, stop token left out."""

    @abstractmethod
    def prompt_turns(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the turns whose `prompt` asks about a row as evaluation does; the row needs no answer.

        Raises:
            RowProblem, MissingColumn: as `parse`.
        """

    @abstractmethod
    def user_turn(self, text: str) -> tuple[Turn, ...]:
        """Return the turns that ask a model `text`, for trying it by hand."""


def fill_template(template: str, row: Mapping[str, Any]) -> str:
    """Put a row's values in a template's braces. A value is never read as a template itself.

    An empty or missing `{name?}` writes nothing, and a line of the template that holds nothing else is left out.
    """
    pieces = parse_template(template)
    if any(piece.optional for piece in pieces):
        return _filled_lines(pieces, row)
    return "".join(text + (cell_text(row, column) if column is not None else "") for text, column, _ in pieces)


def fill_required(template: str, row: Mapping[str, Any]) -> str:
    """Fill a template of text that a row must have; raise RowProblem if the text is blank."""
    text = fill_template(template, row)
    if not text.strip():
        raise RowProblem(f"nothing is left of {template!r}, as its columns are empty")
    return text


def _filled_lines(pieces: Sequence[TemplatePiece], row: Mapping[str, Any]) -> str:
    """Fill a template with optional columns line by line."""
    lines: list[_Line] = [_Line()]
    for piece in pieces:
        first, *others = piece.text.split("\n")
        lines[-1].write(first)
        for text in others:
            lines.append(_Line())
            lines[-1].write(text)
        if piece.column is not None:
            value = optional_cell_text(row, piece.column) if piece.optional else cell_text(row, piece.column)
            lines[-1].write(value, emptied=not value)
    kept: list[_Line] = []
    for line, following in zip(lines, [*lines[1:], _Line()], strict=True):
        if line.is_left_out:
            if kept and kept[-1].is_blank and following.is_blank:
                kept.pop()  # keep one of the blank lines around it
        elif kept or not line.is_blank or not lines[0].is_left_out:
            kept.append(line)
    return "\n".join(line.text for line in kept)


class _Line:
    """A line of a template as it is filled."""

    def __init__(self) -> None:
        self.text, self.is_blank, self.is_emptied = "", True, False

    @property
    def is_left_out(self) -> bool:
        """Whether it holds nothing but empty optional columns."""
        return self.is_blank and self.is_emptied

    def write(self, text: str, *, emptied: bool = False) -> None:
        """Add text; `emptied` says that it is the value of a column that is empty."""
        self.text += text
        self.is_blank &= not text.strip()
        self.is_emptied |= emptied


def optional_cell_text(row: Mapping[str, Any], column: str) -> str:
    """Return one cell as text, an empty one if it is empty or missing; raise RowProblem if it holds something else."""
    try:
        return cell_text(row, column)
    except (MissingColumn, EmptyCell):
        return ""


def fill_single_column(template: str | None, text: str) -> str:
    """Put what a person asks in a template of one column; a template of several cannot be filled by one text."""
    columns = set(columns_in(template)) if template else set()
    return fill_template(str(template), {columns.pop(): text}) if len(columns) == 1 else text


def cell_text(row: Mapping[str, Any], column: str) -> str:
    """Return one cell as text; raise MissingColumn, or RowProblem where it holds no text."""
    if column not in row:
        raise MissingColumn(column)
    value = row[column]
    if isinstance(value, JsonNumber):
        return value.text
    if is_empty_cell(value):
        raise EmptyCell(column)
    if not isinstance(value, _PLAIN):
        hint = f"templates read text: give what you need of `{column}` a column of its own"
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            hint += f"; if it holds messages, write `task: chat` and `messages: {column}`"
        raise RowProblem(f"cell `{column}` holds a {type(value).__name__}, not text", hint=hint)
    if value in (math.inf, -math.inf):
        raise RowProblem(f"cell `{column}` is infinite")
    return format_value(value)


def is_empty_cell(value: Any) -> bool:
    """Say whether a cell holds nothing: null, NaN or blanks."""
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, Number) and value != value)
    )


def format_value(value: Any) -> str:
    """Return the text of a plain value; truth values are `true` and `false`, as JSON and Arrow write them."""
    return str(value).lower() if isinstance(value, bool) else str(value)
