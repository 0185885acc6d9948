"""Rows of a source -> placed, parsed and rendered examples, each with its line in the ledger."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import DataError
from tunesmith.core.records import Example, TokenizedExample, Turn
from tunesmith.data.filters import rejection_reason
from tunesmith.data.identity import block_id, group_id, row_id, short_digest
from tunesmith.data.sources import Row, read_rows
from tunesmith.data.split import assign_split
from tunesmith.recipe.columns import optional_columns, prompt_columns, required_columns
from tunesmith.recipe.schema import ChatData, Recipe
from tunesmith.tasks.base import EmptyCell, MissingColumn, RowProblem, Task, cell_text

_TOOLS = ("tools", "functions")
_GROUP_NAME = 80  # a longer value of `by` is cut when it names its group
_SPLIT_WORDS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A row's line in the ledger. `status` is kept, cut, dropped, filtered or unused; `reason` says why unless kept.

    `times` is how often the row is used in one pass over its split. A document in several blocks has a line for each,
    and `block` says which: (2, 5) is the second of five.
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
        """Rebuild a line from what `to_json` gave."""
        return cls(**{**value, "block": tuple(value["block"]) if value["block"] else None})


@dataclass(frozen=True, slots=True)
class RowNotes:
    """Facts about a row for messages, which its line in the ledger does not have.

    Attributes:
        detail: what is wrong with this row in particular, in addition to the reason.
        hint: how to correct all rows with this reason.
        too_long: how many tokens it has, if they are too many.
        spelled: the first control token that its text spells.
    """

    detail: str = ""
    hint: str = ""
    too_long: int = 0
    spelled: str = ""


NO_NOTES = RowNotes()


@dataclass(frozen=True, slots=True)
class ProcessedRow:
    """A row, or a block of it, and what became of it; `example` and `tokens` are None when it is not used.

    `said` is what the whole row says, also of a block.
    """

    entry: LedgerEntry
    example: Example | None
    tokens: TokenizedExample | None
    said: tuple[Turn, ...] = ()
    remarks: RowNotes = NO_NOTES


class _TooLong(RowProblem):
    """A row has more tokens than the recipe allows."""

    def __init__(self, reason: str, tokens: int, hint: str) -> None:
        super().__init__(reason, f"{tokens} tokens", hint=hint)
        self.tokens = tokens


class DropCounter:
    """What became of rows, counted as they come by."""

    def __init__(self) -> None:
        self._rows = 0
        self._reasons: dict[str, Counter[str]] = {"filtered": Counter(), "dropped": Counter()}
        self._first: dict[str, str] = {}
        self._hints: dict[str, str] = {}
        self._longest = 0
        self._spelled: Counter[str] = Counter()

    def count(self, entry: LedgerEntry, remarks: RowNotes) -> None:
        """Count a row, a document in blocks once."""
        if entry.block is None or entry.block[0] == 1:
            self._rows += 1
        if remarks.spelled:
            self._spelled[remarks.spelled] += 1
            self._first.setdefault(remarks.spelled, entry.where)
        if (counted := self._reasons.get(entry.status)) is not None:
            reason = entry.reason or ""
            counted[reason] += 1
            self._first.setdefault(reason, f"{entry.where}{f' ({remarks.detail})' if remarks.detail else ''}")
            self._hints.setdefault(reason, remarks.hint)
            self._longest = max(self._longest, remarks.too_long)

    def check(self, recipe: Recipe) -> None:
        """Raise DataError where the filters left no row, or too many were dropped."""
        filtered, dropped = self._reasons["filtered"], self._reasons["dropped"]
        asked, total = self._rows - filtered.total(), dropped.total()
        if asked == 0:
            reasons = "; ".join(f"{n} x {reason}" for reason, n in filtered.most_common(5))
            raise DataError(
                f"data.filters leave none of the {self._rows} rows: {reasons}", hint="correct the rules in data.filters"
            )
        if total > recipe.data.max_dropped_fraction * asked:
            told = dropped.most_common(5)
            reasons = "; ".join(f"{n} x {reason}, first {self._first[reason]}" for reason, n in told)
            hints = dict.fromkeys(hint for reason, _ in told if (hint := self._hints[reason]))
            raise DataError(
                f"{total} of {asked} rows cannot be used, more than data.max_dropped_fraction "
                f"({recipe.data.max_dropped_fraction:g}) allows: {reasons}",
                hint=f"{'; '.join(hints) or 'correct the rows'}{self._length()}"
                + ("; or raise data.max_dropped_fraction to do without them" if total < asked else ""),
            )

    def spelled(self) -> dict[str, Any]:
        """Return {rows, token, first}: how many rows spell control tokens, the most frequent one, and the first row."""
        if not self._spelled:
            return {"rows": 0}
        [(token, _)] = self._spelled.most_common(1)
        return {"rows": self._spelled.total(), "token": token, "first": self._first[token]}

    def _length(self) -> str:
        return f" (the longest row has {self._longest:,} tokens)" if self._longest else ""


def process_rows(recipe: Recipe, task: Task, *, folder: Path) -> Iterator[ProcessedRow]:
    """Yield every row of the recipe's sources with what becomes of it, a long document block by block.

    Raises:
        DataError: a source cannot be read, a column is missing, the filters leave no row, or too many are dropped.
    """
    tally = DropCounter()
    for row in read_recipe_rows(recipe, folder):
        interrupt.check()
        for found in process_row(recipe, task, row):
            tally.count(found.entry, found.remarks)
            yield found
    tally.check(recipe)


def read_recipe_rows(recipe: Recipe, folder: Path) -> Iterator[Row]:
    """Yield the rows of the recipe's sources; raise DataError if they lack a column that it uses."""
    needed, optional = required_columns(recipe.data), optional_columns(recipe.data)
    return read_rows(recipe.data.source, folder=folder, needed=needed, optional=optional)


def process_row(recipe: Recipe, task: Task, row: Row) -> list[ProcessedRow]:
    """Return what becomes of one row, and of a long document of each block.

    Raises:
        DataError: the row names an unknown split, or has tools that the model would never see.
    """
    try:
        if broken := rejection_reason(recipe.data.filters, row):
            return [ProcessedRow(LedgerEntry(row.number, row.where, row.source, "filtered", reason=broken), None, None)]
        return _used(recipe, task, row)
    except MissingColumn as error:  # if all rows lack it, reading them raises DataError
        problem: RowProblem = EmptyCell(error.column)
    except RowProblem as error:
        problem = error
    entry = LedgerEntry(row.number, row.where, row.source, "dropped", reason=problem.reason)
    too_long = problem.tokens if isinstance(problem, _TooLong) else 0
    return [ProcessedRow(entry, None, None, remarks=RowNotes(problem.detail, _hint(recipe, problem), too_long))]


def _hint(recipe: Recipe, problem: RowProblem) -> str:
    if isinstance(problem, EmptyCell) and problem.column in prompt_columns(recipe.data):
        return f"if `{problem.column}` may be empty, write `{{{problem.column}?}}` in the template"
    return problem.hint


def _refuse_tools(recipe: Recipe, row: Row) -> None:
    """Raise DataError if a conversation has tools in a column, which chat templates do not receive."""
    if not isinstance(recipe.data, ChatData) or recipe.data.messages is None:
        return
    for column in _TOOLS:
        if row.values.get(column) not in (None, "", "[]", "{}", [], {}) and column not in required_columns(recipe.data):
            raise DataError(
                f"the column `{column}` holds tools, which the model would never see: chat templates are given "
                "`messages` only",
                where=row.where,
                hint=f'write them into a system turn (`system: "{{{column}}}"` if the column is text), or train '
                f"without them by renaming the column: data.source.rename: {{{column}: unused}}",
            )


def _used(recipe: Recipe, task: Task, row: Row) -> list[ProcessedRow]:
    """Return the one example of a row, or its blocks, which share its split and its group."""
    turns = task.parse(row.values)
    _refuse_tools(recipe, row)
    split, group = _place(recipe, row, turns)
    parts = _parts(task, turns, row_id(recipe.data, row.values, turns), recipe.data.max_tokens_per_example)
    found, remarks = [], RowNotes(spelled=task.find_control_token(turns) or "")
    for number, (part, rendered) in enumerate(parts, 1):
        tokens, reason = _limited(recipe, task, rendered)
        status, block = "cut" if reason else "kept", (number, len(parts)) if len(parts) > 1 else None
        counts = tokens.length, sum(tokens.trained[1:])
        entry = LedgerEntry(
            row.number, row.where, row.source, status, split, tokens.example_id, reason, *counts, 1, block
        )
        found.append(ProcessedRow(entry, Example(tokens.example_id, row.number, group, part), tokens, turns, remarks))
        remarks = NO_NOTES
    return found


def _parts(
    task: Task, turns: tuple[Turn, ...], name: str, most: int
) -> list[tuple[tuple[Turn, ...], TokenizedExample]]:
    """Return the turns and the tokens of a row called `name`, or of each of its blocks."""
    whole = task.render(turns, name)
    blocks = enumerate(task.split_blocks(whole, most), 1)
    return [(block, task.render(block, block_id(name, n, most))) for n, block in blocks] or [(turns, whole)]


def _limited(recipe: Recipe, task: Task, tokens: TokenizedExample) -> tuple[TokenizedExample, str | None]:
    """Return an example that is short enough, and why it was cut; raise RowProblem where nothing is left to learn."""
    short, reason = task.truncate(tokens, recipe.data.max_tokens_per_example)
    if reason is not None and recipe.data.too_long == "drop":
        hint = "raise data.max_tokens_per_example, or set data.too_long: truncate"
        raise _TooLong(reason, tokens.length, hint + (" or split" if recipe.data.task == "text" else ""))
    if not any(short.trained[1:]):  # nothing stands before the first token that could predict it
        raise RowProblem("nothing to learn is left after cutting" if reason else "has no token to learn")
    return short, reason


def _place(recipe: Recipe, row: Row, turns: tuple[Turn, ...]) -> tuple[str, str]:
    """Return the split of a row and the group that it must not be parted from: a readable name if `by` gives one."""
    split = recipe.data.split
    if split.by is None:
        name = group = group_id(recipe.data, row.values, turns)
    else:
        value = cell_text(row.values, split.by)
        group = short_digest(value)
        name = value if len(value) <= _GROUP_NAME else f"{value[:_GROUP_NAME]}\u2026 {group}"
    if split.column is None:
        return assign_split(group, valid=split.valid, test=split.test, seed=recipe.seed), name
    word = cell_text(row.values, split.column).strip().lower()
    if word not in _SPLIT_WORDS:
        raise DataError(
            f"column `{split.column}` says {word!r}, which is no split", where=row.where, hint="train, valid or test"
        )
    return _SPLIT_WORDS[word], name
