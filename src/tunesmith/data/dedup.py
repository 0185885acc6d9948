"""Find duplicates and near-duplicates: within train, and between train and the held-out splits (leakage)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from tunesmith.core.errors import DataError
from tunesmith.core.rundir import HELD_OUT, SPLITS
from tunesmith.data.similarity import MinHashIndex, ShingleIndex
from tunesmith.data.spool import SpooledRow
from tunesmith.recipe.schema import Recipe

_MAX_EXAMPLES = 5


class Duplicate(NamedTuple):
    """A row that duplicates another, exactly or with at least the threshold's similarity (Jaccard index)."""

    row: SpooledRow
    original: SpooledRow
    similarity: float
    is_exact: bool

    @property
    def reason(self) -> str:
        """The reason for the ledger to leave out the row, equal for all such rows."""
        return f"{'duplicate' if self.is_exact else 'near-duplicate'} of a {self.original.entry.split} row"


class SplitComparison:
    """A search for duplicates within and between the splits.

    It compares prompt and answer together: rows with the same prompt and different answers are not duplicates. A
    document in blocks is compared once, as a whole.

    Args:
        used: the rows of each split, each once, in the order of the ledger.
        shingle_index: the shingles of all rows.
        threshold: the minimum similarity of near-duplicates.
    """

    def __init__(self, used: Mapping[str, Sequence[SpooledRow]], shingle_index: ShingleIndex, threshold: float) -> None:
        self._threshold = threshold
        self._rows: list[SpooledRow] = []
        self._indices: dict[str, range] = {}
        for split in SPLITS:
            start = len(self._rows)
            self._rows += [next(blocks) for _, blocks in groupby(used[split], key=lambda row: row.entry.row)]
            self._indices[split] = range(start, len(self._rows))
        self._texts = MinHashIndex(shingle_index, [row.shingles for row in self._rows])

    def facts(self) -> dict[str, Any]:
        """Return {near_duplicate_threshold, duplicates, valid, test}: the rows that duplicate a training row.

        For duplicates within train (`duplicates`), the earlier row counts as the original.
        """
        facts: dict[str, Any] = {"near_duplicate_threshold": self._threshold}
        train = self._indices["train"]
        for split, indices in self._indices.items():
            name = "duplicates" if split == "train" else split
            facts[name] = {"rows": len(indices), **summarize_duplicates(self._find_duplicates(indices, train))}
        return facts

    def leaking_rows(self) -> list[Duplicate]:
        """Return the training rows that duplicate held-out rows. The result is empty only if `facts` finds no leakage.

        The search for near-duplicates is not symmetric: it may find a pair from the held-out row and miss it from the
        training row (see `MinHashIndex.nearest`). So if no training row is found, search from the held-out rows too.
        """
        train, held_out = self._indices["train"], range(len(self._indices["train"]), len(self._rows))
        return self._find_duplicates(train, held_out) or [
            Duplicate(d.original, d.row, d.similarity, d.is_exact) for d in self._find_duplicates(held_out, train)
        ]

    def _find_duplicates(self, queries: range, pool: range) -> list[Duplicate]:
        """Return the rows of `queries` that duplicate a row of `pool`, the most similar first."""
        first_with = {self._rows[index].content_hash: index for index in reversed(pool)}
        exact = {
            i: (original, 1.0)
            for i in queries
            if (original := first_with.get(self._rows[i].content_hash)) is not None and original != i
        }
        rest = [i for i in queries if i not in exact]
        near = self._texts.nearest(rest, sorted(first_with.values()), self._threshold)
        pairs = sorted((exact | near).items(), key=lambda pair: (-pair[1][1], pair[0]))
        return [
            Duplicate(self._rows[i], self._rows[original], similarity, i in exact)
            for i, (original, similarity) in pairs
        ]


def summarize_duplicates(duplicates: Sequence[Duplicate]) -> dict[str, Any]:
    """Return {exact, near, examples} of duplicates that are sorted by similarity."""
    exact = sum(duplicate.is_exact for duplicate in duplicates)
    examples = [
        {"row": row.entry.where, "of": original.entry.where, "similarity": round(similarity, 3)}
        for row, original, similarity, _ in duplicates[:_MAX_EXAMPLES]
    ]
    return {"exact": exact, "near": len(duplicates) - exact, "examples": examples}


def apply_leakage_policy(copies: Mapping[str, Any], recipe: Recipe, remark: Callable[[str], None]) -> None:
    """Report leakage and the rows left out for it; raise DataError instead if the recipe's policy is `error`."""
    if removed := copies.get("left_out"):
        count = removed["exact"] + removed["near"]
        remark(f"{count} training rows that duplicate held-out rows are left out {_pairs(removed)}")
    hint = "`leakage: drop` removes them from training, `warn` only warns, and data.split.by keeps them in one split"
    duplicates = {split: copies[split] for split in HELD_OUT if copies[split]["exact"] + copies[split]["near"]}
    warnings = [
        f"{f['exact'] + f['near']} of {f['rows']} {split} rows duplicate training rows {_pairs(f)}"
        for split, f in duplicates.items()
    ]
    warn_or_raise(warnings, hint, recipe, remark)


def warn_or_raise(
    warnings: Sequence[str], hint: str, recipe: Recipe, remark: Callable[[str], None], *, remedy: str = ""
) -> None:
    """Log warnings of leakage, followed by `remedy`; raise DataError instead if the recipe's policy is `error`."""
    if warnings and recipe.data.leakage == "error":
        raise DataError("; ".join(warnings), where="data.leakage", hint=hint, code="leakage")
    for warning in warnings:
        remark(f"warning: {warning}{remedy}")


def find_split_groups(used: Mapping[str, Sequence[SpooledRow]]) -> dict[str, Any]:
    """Return {groups, rows, of, example} for valid and test: the groups that also have training rows, and their rows.

    `of` is the number of rows in the split, and `example` a row of it with a training row of the same group.
    """
    train = {row.group: row for row in reversed(used["train"])}
    facts: dict[str, Any] = {}
    for split in HELD_OUT:
        rows = [row for row in used[split] if row.group in train]
        example = [rows[0].entry.where, train[rows[0].group].entry.where] if rows else None
        groups = len({row.group for row in rows})
        facts[split] = {"groups": groups, "rows": len(rows), "of": len(used[split]), "example": example}
    return facts


def report_split_groups(copies: Mapping[str, Any], recipe: Recipe, remark: Callable[[str], None]) -> None:
    """Warn of groups with training and held-out rows; raise DataError instead if the recipe's policy is `error`."""
    split = recipe.data.split
    kind = f"groups of `{split.by}`" if split.by else "groups with the same prompt"
    warnings = [
        f"{facts['rows']} of {facts['of']} {name} rows are in {facts['groups']} {kind} that also have training rows, "
        f"such as {facts['example'][0]} and {facts['example'][1]}"
        for name, facts in copies.get("groups", {}).items()
        if facts["rows"]
    ]
    hint = "leave the training rows of these groups out with data.filters"
    if split.column:
        hint = f"change the column `{split.column}`, or remove data.split.column so that groups stay together"
    warn_or_raise(warnings, hint, recipe, remark, remedy=f"; {hint}")


def _pairs(facts: Mapping[str, Any]) -> str:
    pairs = ", ".join(f"{pair['row']} like {pair['of']} ({pair['similarity']:g})" for pair in facts["examples"])
    return f"({facts['exact']} exactly, {facts['near']} nearly): {pairs}"
