"""Rows of a source -> placed, parsed and rendered examples, each with its line in the ledger.

`prepare` writes what comes out; `plan` and `show` only look at it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import DataError
from tunesmith.core.files import digest_of
from tunesmith.core.records import Example, Tokens, Turn
from tunesmith.core.rundir import SPLITS
from tunesmith.data.sources import Row, missing_column_error, read_rows
from tunesmith.data.split import assign, group_key
from tunesmith.recipe.schema import Recipe, Split
from tunesmith.tasks.base import MissingColumn, RowProblem, Task, cell

_SPLIT_WORDS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A row's line in the ledger. `status` is kept, cut, dropped or unused; `reason` says why unless kept."""

    row: int
    where: str
    status: str
    split: str | None = None
    id: str | None = None
    reason: str | None = None
    tokens: int = 0
    trained: int = 0


@dataclass(frozen=True, slots=True)
class Examined:
    """A row and what became of it; `example` and `tokens` are None when it was dropped."""

    entry: Entry
    example: Example | None
    tokens: Tokens | None


def examine(recipe: Recipe, task: Task, *, folder: Path) -> Iterator[Examined]:
    """Yield every row of the recipe's source with what becomes of it.

    Raises:
        DataError: the source cannot be read, a column is missing, or too many rows are dropped.
    """
    dropped: Counter[str] = Counter()
    first: dict[str, str] = {}
    count = 0
    for row in read_rows(recipe.data.source, folder=folder):
        interrupt.check()
        count += 1
        try:
            yield _one(recipe, task, row)
        except MissingColumn as error:
            raise missing_column_error(error.column, row) from None
        except RowProblem as problem:
            dropped[problem.reason] += 1
            first.setdefault(problem.reason, f"{row.where}{f' ({problem.detail})' if problem.detail else ''}")
            yield Examined(Entry(row.number, row.where, "dropped", reason=problem.reason), None, None)
    total = sum(dropped.values())
    if total > recipe.data.max_dropped_fraction * count:
        reasons = "; ".join(f"{n} x {reason}, first {first[reason]}" for reason, n in dropped.most_common(5))
        raise DataError(
            f"{total} of {count} rows cannot be used, more than data.max_dropped_fraction "
            f"({recipe.data.max_dropped_fraction:g}) allows: {reasons}",
            hint="mend the rows, or allow more in the recipe",
        )


def _one(recipe: Recipe, task: Task, row: Row) -> Examined:
    turns = task.parse(row.values)
    split, group = _place(recipe.data.split, row, turns, recipe.seed)
    identity = digest_of([[turn.role, turn.text, turn.trained] for turn in turns])[:16]
    example = Example(identity, row.number, group, turns)
    tokens = task.render(turns, identity)
    short, reason = task.limited(tokens, recipe.data.max_tokens_per_example)
    if reason is not None and recipe.data.too_long == "drop":
        raise RowProblem(reason, f"{_read(tokens)} tokens")
    tokens, status = short, "cut" if reason else "kept"
    if not any(tokens.trained[1:]):  # nothing stands before the first token that could predict it
        raise RowProblem("has no token to learn" if status == "kept" else "nothing to learn is left after cutting")
    entry = Entry(row.number, row.where, status, split, identity, reason, _read(tokens), sum(tokens.trained[1:]))
    return Examined(entry, example, tokens)


def _read(tokens: Tokens) -> int:
    """Return how many tokens a model reads for an example."""
    return len(tokens.source_ids) + len(tokens.input_ids)


def _place(split: Split, row: Row, turns: tuple[Turn, ...], seed: int) -> tuple[str, str]:
    """Return the split of a row and the group that it must not be parted from."""
    if split.by is not None:
        group = cell(row.values, split.by)
    else:
        # Rows that ask the same stay together, or the test would hold questions that training saw.
        first = next(index for index, turn in enumerate(turns) if turn.trained)
        group = group_key("\n".join(turn.text for turn in turns[: max(first, 1)]))
    group = digest_of(group)[:16]
    if split.column is None:
        return assign(group, valid=split.valid, test=split.test, seed=seed), group
    word = cell(row.values, split.column).strip().lower()
    if word not in _SPLIT_WORDS:
        raise DataError(
            f"column `{split.column}` says {word!r}, which is no split", where=row.where, hint="train, valid or test"
        )
    return _SPLIT_WORDS[word], group


def token_view(tokens: Tokens, task_codec: Any) -> list[dict[str, Any]]:
    """Return each token as {text, id, trained, special}, for people to look at: an encoder's before a decoder's."""
    ids, trained = tokens.source_ids + tokens.input_ids, (False,) * len(tokens.source_ids) + tokens.trained
    return [
        {"text": task_codec.piece(i), "id": i, "trained": learned, "special": i in task_codec.control_ids}
        for i, learned in zip(ids, trained, strict=True)
    ]


def histogram(lengths: list[int]) -> dict[str, Any]:
    """Return {histogram: [[low, high, count], ...], median, p95, max} of token counts."""
    if not lengths:
        return {"histogram": [], "median": 0, "p95": 0, "max": 0}
    ordered = sorted(lengths)
    width = max(1, -(-ordered[-1] // 20))
    bins = Counter(length // width for length in ordered)
    return {
        "histogram": [[i * width, (i + 1) * width, bins.get(i, 0)] for i in range(ordered[-1] // width + 1)],
        "median": ordered[len(ordered) // 2],
        "p95": ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))],
        "max": ordered[-1],
    }


def empty_splits(counts: dict[str, int], split: Split) -> list[str]:
    """Return the splits that the run needs and that have no rows."""
    needed = {"train": True, "valid": split.column is None and split.valid > 0, "test": True}
    return [name for name in SPLITS if needed[name] and not counts.get(name)]
