"""Rows that say the same, or nearly: within train (duplicates), and in valid and test as in train (leakage)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from tunesmith.core.errors import DataError
from tunesmith.data.similarity import MinHashIndex, ShingleIndex
from tunesmith.data.spool import SpooledRow
from tunesmith.recipe.schema import Recipe

_EXAMPLES = 5
HELD_OUT = ("valid", "test")


class Duplicate(NamedTuple):
    """A row that duplicates another exactly, or with a similarity (Jaccard index) of at least the threshold."""

    row: SpooledRow
    of: SpooledRow
    similarity: float
    is_exact: bool

    @property
    def reason(self) -> str:
        """Why the row is left out, the same for all such rows."""
        return f"says {'what' if self.is_exact else 'nearly what'} a {self.of.entry.split} row says"


class SplitComparison:
    """The rows of each split, compared in what they say.

    Prompt and answer are compared together: rows that ask alike and answer differently are no copies. A document in
    blocks is compared once, as a whole.

    Args:
        used: the rows of each split, each once, in the order of the ledger.
        runs: of what they say.
        threshold: least similarity of near-duplicates.
    """

    def __init__(self, used: Mapping[str, Sequence[SpooledRow]], runs: ShingleIndex, threshold: float) -> None:
        self._threshold = threshold
        self._rows: list[SpooledRow] = []
        self._places: dict[str, range] = {}
        for split in ("train", *HELD_OUT):
            begin = len(self._rows)
            self._rows += [next(blocks) for _, blocks in groupby(used[split], key=lambda row: row.entry.row)]
            self._places[split] = range(begin, len(self._rows))
        self._texts = MinHashIndex.among(runs, [row.text for row in self._rows])

    def facts(self) -> dict[str, Any]:
        """Return {near_duplicate_threshold, duplicates, valid, test}: how many rows have a copy in train, and examples.

        Of `duplicates`, a row's copy stands before it.
        """
        found: dict[str, Any] = {"near_duplicate_threshold": self._threshold}
        train = self._places["train"]
        for name, split in (("duplicates", "train"), ("valid", "valid"), ("test", "test")):
            mine = self._places[split]
            found[name] = {"rows": len(mine), **summarize_duplicates(self._copies(mine, train))}
        return found

    def leaking(self) -> list[Duplicate]:
        """Return the training rows that are copies of held-out rows; none if and only if `facts` finds no leakage.

        Every training row is asked whether it is a copy. The search is not quite complete (see `Texts.nearest`), so the
        held-out rows are asked too before the answer is that there is none.
        """
        train, held_out = self._places["train"], range(len(self._places["train"]), len(self._rows))
        return self._copies(train, held_out) or [
            copy._replace(row=copy.of, of=copy.row) for copy in self._copies(held_out, train)
        ]

    def _copies(self, asked: range, among: range) -> list[Duplicate]:
        """Return a copy of each row asked about that has one, the most similar rows first."""
        first: dict[str, int] = {}
        for place in among:
            first.setdefault(self._rows[place].said, place)
        exact = {i: (of, 1.0) for i in asked if (of := first.get(self._rows[i].said)) is not None and of != i}
        near = self._texts.nearest([i for i in asked if i not in exact], sorted(first.values()), self._threshold)
        pairs = sorted((exact | near).items(), key=lambda pair: (-pair[1][1], pair[0]))
        return [Duplicate(self._rows[i], self._rows[of], likeness, i in exact) for i, (of, likeness) in pairs]


def summarize_duplicates(copies: Sequence[Duplicate]) -> dict[str, Any]:
    """Return {exact, near, examples} of copies, the most similar first."""
    exact = sum(copy.is_exact for copy in copies)
    pairs = [(copy.row.entry.where, copy.of.entry.where, round(copy.similarity, 3)) for copy in copies[:_EXAMPLES]]
    examples = [{"row": row, "of": of, "similarity": similarity} for row, of, similarity in pairs]
    return {"exact": exact, "near": len(copies) - exact, "examples": examples}


def apply_leakage_policy(copies: Mapping[str, Any], recipe: Recipe, remark: Callable[[str], None]) -> None:
    """Remark which rows stand in train and elsewhere, or raise DataError if the recipe says `error`."""
    if gone := copies.get("left_out"):
        remark(f"{gone['exact'] + gone['near']} training rows are left out: held-out rows say the same {_pairs(gone)}")
    lines = [line for split in HELD_OUT if (line := leakage_warning(copies, split))]
    if lines and recipe.data.leakage == "error":
        raise DataError(
            "; ".join(lines),
            where="data.leakage",
            hint="`leakage: drop` leaves them out of training, and `warn` only says it; or keep such rows in one split "
            "with data.split.by",
        )
    for line in lines:
        remark(f"warning: {line}")


def split_groups(used: Mapping[str, Sequence[SpooledRow]]) -> dict[str, Any]:
    """Return, of valid and test, {groups, rows, of, example}: groups that training rows are in too, and how many rows.

    `of` is how many rows the split has, and `example` a row of it beside a training row.
    """
    train = {row.group: row for row in reversed(used["train"])}
    found: dict[str, Any] = {}
    for split in HELD_OUT:
        rows = [row for row in used[split] if row.group in train]
        example = [rows[0].entry.where, train[rows[0].group].entry.where] if rows else None
        groups = len({row.group for row in rows})
        found[split] = {"groups": groups, "rows": len(rows), "of": len(used[split]), "example": example}
    return found


def report_split_groups(copies: Mapping[str, Any], recipe: Recipe, remark: Callable[[str], None]) -> None:
    """Remark which groups of `split.by` the column of splits divides, or raise DataError if the recipe says `error`."""
    split = recipe.data.split
    lines = [
        f"{found['rows']} of {found['of']} {name} rows are in {found['groups']} groups of `{split.by}` that training "
        f"rows are in too, such as {found['example'][0]} and {found['example'][1]}"
        for name, found in copies.get("groups", {}).items()
        if found["rows"]
    ]
    hint = f"change the column `{split.column}`, or leave out data.split.column so that groups stay together"
    if lines and recipe.data.leakage == "error":
        raise DataError("; ".join(lines), where="data.leakage", hint=hint)
    for line in lines:
        remark(f"warning: {line}; {hint}")


def leakage_warning(copies: Mapping[str, Any], split: str) -> str | None:
    """Return in words how many rows of a split have copies in train, with pairs; None where there are none."""
    found = copies[split]
    if not found["exact"] + found["near"]:
        return None
    return f"{found['exact'] + found['near']} of {found['rows']} {split} rows stand in train too {_pairs(found)}"


def _pairs(found: Mapping[str, Any]) -> str:
    pairs = ", ".join(f"{one['row']} like {one['of']} ({one['similarity']:g})" for one in found["examples"])
    return f"({found['exact']} exactly, {found['near']} nearly): {pairs}"
