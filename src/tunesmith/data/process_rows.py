"""Turn the rows of a source into tokenized examples with a split, a group and an entry in the ledger."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import DataError
from tunesmith.core.records import LOSS_WEIGHT, Example, TokenizedExample, Turn
from tunesmith.data.filters import rejection_reason
from tunesmith.data.identity import block_id, group_id, row_id, short_digest
from tunesmith.data.sources import Row, own_splits, read_rows
from tunesmith.data.split import assign_split, split_named
from tunesmith.recipe.columns import (
    optional_columns,
    prompt_columns,
    reference_columns,
    required_columns,
    tools_column,
)
from tunesmith.recipe.held_out import all_sources, fraction, listed_sources
from tunesmith.recipe.schema import ChatData, Recipe
from tunesmith.tasks.base import EmptyCell, RowProblem, Task, cell_text
from tunesmith.tasks.references import row_references

_TOOL_COLUMNS = ("tools", "functions")
_MAX_GROUP_NAME = 80  # a longer value of `split.by` is truncated in the name of its group


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """The line in the ledger for a row, or for each block of a split document.

    Attributes:
        row: the 1-based number of the row over all sources.
        status: `kept`, `cut`, `dropped`, `filtered` or `unused`.
        reason: why the row is not kept as it is.
        tokens: the tokens that a model reads.
        trained: the tokens that enter the loss.
        times: how often the row is used in one pass over its split.
        block: the number of the block and the number of blocks: (2, 5) is the second of five.
    """

    row: int
    where: str
    source: str
    status: str
    split: str | None = None
    id: str | None = None
    reason: str | None = None
    tokens: int = 0
    trained: int = 0
    times: int = 0
    block: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the line as it is stored in `prepare/rows.jsonl`."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LedgerEntry":
        """Return the entry of a stored line."""
        return cls(**{**value, "block": tuple(value["block"]) if value.get("block") else None})


@dataclass(frozen=True, slots=True)
class RowNotes:
    """Facts about a row for messages, which are not stored in the ledger.

    Attributes:
        detail: the part of the problem that is specific to this row.
        hint: how to correct all rows with the same reason.
        excess_length: the number of tokens of a row that was dropped for its length.
        control_token: the first control token in the row's text.
    """

    detail: str = ""
    hint: str = ""
    excess_length: int = 0
    control_token: str = ""


NO_NOTES = RowNotes()


@dataclass(frozen=True, slots=True)
class ProcessedRow:
    """A processed row, or one block of a document; `example` and `tokens` are None if it is not used.

    `row_turns` are the turns of the whole row, also for a block.
    """

    entry: LedgerEntry
    example: Example | None
    tokens: TokenizedExample | None
    row_turns: tuple[Turn, ...] = ()
    notes: RowNotes = NO_NOTES


class DropCounter:
    """Counts of dropped and filtered rows by reason, and of rows whose text contains control tokens."""

    def __init__(self) -> None:
        self._rows = 0
        self._reasons: dict[str, Counter[str]] = {"filtered": Counter(), "dropped": Counter()}
        self._first: dict[str, str] = {}
        self._hints: dict[str, str] = {}
        self._max_length = 0
        self._control_tokens: Counter[str] = Counter()

    def count(self, entry: LedgerEntry, notes: RowNotes) -> None:
        """Count a row; of the blocks of a document only the first counts."""
        if entry.block is None or entry.block[0] == 1:
            self._rows += 1
        if notes.control_token:
            self._control_tokens[notes.control_token] += 1
            self._first.setdefault(notes.control_token, entry.where)
        if (reasons := self._reasons.get(entry.status)) is not None:
            reason = entry.reason or ""
            reasons[reason] += 1
            self._first.setdefault(reason, f"{entry.where}{f' ({notes.detail})' if notes.detail else ''}")
            self._hints.setdefault(reason, notes.hint)
            self._max_length = max(self._max_length, notes.excess_length)

    def check(self, recipe: Recipe) -> None:
        """Raise DataError if the filters left no row, or if too many rows were dropped."""
        filtered, dropped = self._reasons["filtered"], self._reasons["dropped"]
        accepted, total = self._rows - filtered.total(), dropped.total()
        if accepted == 0:
            reasons = "; ".join(f"{n} x {reason}" for reason, n in filtered.most_common(5))
            problem = f"data.filters leave none of the {self._rows} rows: {reasons}"
            raise DataError(problem, hint="correct the rules in data.filters", code="no-rows")
        if total > recipe.data.max_dropped_fraction * accepted:
            most_common = dropped.most_common(5)
            reasons = "; ".join(f"{n} x {reason}, first {self._first[reason]}" for reason, n in most_common)
            hints = dict.fromkeys(hint for reason, _ in most_common if (hint := self._hints[reason]))
            hint = "; ".join(hints) or "correct the rows"
            if self._max_length:
                hint += f" (the longest row has {self._max_length:,} tokens)"
            if total < accepted:
                hint += "; or raise data.max_dropped_fraction to drop them"
            limit = f"more than data.max_dropped_fraction ({recipe.data.max_dropped_fraction:g}) allows"
            problem = f"{total} of {accepted} rows cannot be used, {limit}: {reasons}"
            raise DataError(problem, hint=hint, code="too-many-dropped")

    def control_tokens(self) -> dict[str, Any]:
        """Return {rows, token, first}: the rows that contain control tokens, the most frequent one, its first row."""
        if not self._control_tokens:
            return {"rows": 0}
        [(token, _)] = self._control_tokens.most_common(1)
        return {"rows": self._control_tokens.total(), "token": token, "first": self._first[token]}


def process_rows(recipe: Recipe, task: Task, *, folder: Path) -> Iterator[ProcessedRow]:
    """Yield the processed rows of the recipe's sources, and each block of a long document separately.

    Raises:
        DataError: a source cannot be read, a column is missing, the filters leave no row, or too many are dropped.
    """
    counter = DropCounter()
    for row in read_recipe_rows(recipe, folder):
        interrupt.check()
        for processed in process_row(recipe, task, row):
            counter.count(processed.entry, processed.notes)
            yield processed
    counter.check(recipe)


def read_recipe_rows(recipe: Recipe, folder: Path) -> Iterator[Row]:
    """Yield the rows of the recipe's sources; raise DataError if they lack a column that the recipe uses."""
    needed = required_columns(recipe.data)
    optional = {*optional_columns(recipe.data), *reference_columns(recipe.data)}
    return read_rows(
        all_sources(recipe.data), folder=folder, needed=needed, optional=optional, splits=own_splits(recipe.data)
    )


def process_row(recipe: Recipe, task: Task, row: Row) -> list[ProcessedRow]:
    """Filter, parse and tokenize one row; return one result, or one for each block of a long document.

    Raises:
        DataError: the row names an unknown split, or has tools that the model would never see.
    """
    try:
        if reason := rejection_reason(recipe.data.filters, row):
            return [ProcessedRow(LedgerEntry(row.number, row.where, row.source, "filtered", reason=reason), None, None)]
        return _tokenize(recipe, task, row)
    except RowProblem as problem:  # also MissingColumn; if all rows lack a column, reading them raises DataError
        entry = LedgerEntry(row.number, row.where, row.source, "dropped", reason=problem.reason)
        notes = RowNotes(problem.detail, _hint(recipe, problem), problem.excess_length)
        return [ProcessedRow(entry, None, None, notes=notes)]


def _hint(recipe: Recipe, problem: RowProblem) -> str:
    if isinstance(problem, EmptyCell) and problem.column in prompt_columns(recipe.data):
        return f"if `{problem.column}` may be empty, write `{{{problem.column}?}}` in the template"
    return problem.hint


def _check_tools(recipe: Recipe, row: Row) -> None:
    """Raise DataError if a conversation has tools in a column, because chat templates do not get that column."""
    if not isinstance(recipe.data, ChatData) or recipe.data.messages is None:
        return
    used = (*prompt_columns(recipe.data), *required_columns(recipe.data), tools_column(recipe.data))
    for column in _TOOL_COLUMNS:
        if row.values.get(column) not in (None, "", "[]", "{}", [], {}) and column not in used:
            problem = f"the column `{column}` contains tools, but the model sees `messages` only"
            hint = f"give them to the chat template with `data.tools: {column}`, or train without them by renaming the "
            hint += f"column: data.source.rename: {{{column}: unused}}"
            raise DataError(problem, where=row.where, hint=hint, code="unseen-tools")


def _tokenize(recipe: Recipe, task: Task, row: Row) -> list[ProcessedRow]:
    """Return the example of a row, or the examples of its blocks, which have the same split and group."""
    turns = task.parse(row.values)
    _check_tools(recipe, row)
    split, group = _split_and_group(recipe, row, turns)
    parts = _render(task, turns, row_id(recipe.data, row.values, turns), recipe.data.max_tokens_per_example)
    references = row_references(recipe.data, row.values) if split != "train" else ()
    is_weighted = any(source.loss_weight != 1 for source in listed_sources(recipe.data))
    results, notes = [], RowNotes(control_token=task.find_control_token(turns) or "")
    for number, (part, rendered) in enumerate(parts, 1):
        tokens, reason = _truncate(recipe, task, rendered)
        if is_weighted:
            tokens = replace(tokens, columns={**tokens.columns, LOSS_WEIGHT: (row.loss_weight,)})
        status, block = "cut" if reason else "kept", (number, len(parts)) if len(parts) > 1 else None
        counts = tokens.length, sum(tokens.trained[1:])
        entry = LedgerEntry(
            row.number, row.where, row.source, status, split, tokens.example_id, reason, *counts, 1, block
        )
        example = Example(tokens.example_id, row.number, group, part, references)
        results.append(ProcessedRow(entry, example, tokens, turns, notes))
        notes = NO_NOTES
    return results


def _render(
    task: Task, turns: tuple[Turn, ...], row_id_: str, max_tokens: int
) -> list[tuple[tuple[Turn, ...], TokenizedExample]]:
    """Return the turns and the tokens of a row, or of each of its blocks."""
    whole = task.render(turns, row_id_)
    blocks = enumerate(task.split_blocks(whole, max_tokens), 1)
    parts = [(block, task.render(block, block_id(row_id_, number, max_tokens))) for number, block in blocks]
    return parts or [(turns, whole)]


def _truncate(recipe: Recipe, task: Task, tokens: TokenizedExample) -> tuple[TokenizedExample, str | None]:
    """Return an example of at most the allowed length, and the reason if it was cut.

    Raises:
        RowProblem: the row is too long and the recipe drops such rows, or no trained token is left.
    """
    short, reason = task.truncate(tokens, recipe.data.max_tokens_per_example)
    if reason is not None and recipe.data.too_long == "drop":
        hint = "raise data.max_tokens_per_example, or set data.too_long: truncate"
        hint += " or split" if recipe.data.task == "text" else ""
        raise RowProblem(reason, f"{tokens.length} tokens", code="row-too-long", hint=hint, excess_length=tokens.length)
    if not any(short.trained[1:]):  # the first token is never predicted
        problem = "has no trained token after truncation" if reason else "has no trained token"
        raise RowProblem(problem, code="no-trained-token")
    return short, reason


def _split_and_group(recipe: Recipe, row: Row, turns: tuple[Turn, ...]) -> tuple[str, str]:
    """Return the split and the group of a row. The group is a readable name if `split.by` gives one."""
    split = recipe.data.split
    if split.by is None:
        name = group = group_id(recipe.data, row.values, turns)
    else:
        value = cell_text(row.values, split.by)
        group = short_digest(value)
        name = value if len(value) <= _MAX_GROUP_NAME else f"{value[:_MAX_GROUP_NAME]}\u2026 {group}"
    if row.split is not None:
        return row.split, name
    if split.column is None:
        valid, test = fraction(recipe.data, "valid"), fraction(recipe.data, "test")
        return assign_split(group, valid=valid, test=test, seed=recipe.seed), name
    written = cell_text(row.values, split.column)
    if (split_name := split_named(written)) is None:
        problem = f"the column `{split.column}` is {written!r}, which is not a split"
        raise DataError(problem, where=row.where, hint="use train, valid or test", code="unknown-split")
    return split_name, name
