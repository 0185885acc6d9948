"""Explain why a split is empty or differs from its requested size, and how to correct it."""

from collections import Counter
from collections.abc import Sequence
from math import sqrt

from tunesmith.core.rundir import HELD_OUT
from tunesmith.data.sources import own_splits
from tunesmith.data.spool import SpooledRow
from tunesmith.recipe.data_source import Split
from tunesmith.recipe.held_out import fraction
from tunesmith.recipe.schema import DataBase, Recipe

# The tolerated difference: this fraction of the rows, or this many standard deviations of the size of a split of
# independently assigned rows, whichever is more.
_MIN_TOLERANCE, _DEVIATIONS = 0.05, 4


def split_size_warning(rows: Sequence[SpooledRow], recipe: Recipe) -> str | None:
    """Return a warning that a split is much larger or smaller than requested, and why; None if none is."""
    split, used = recipe.data.split, _rows_to_split(rows, recipe.data)
    if split.column is not None or not used:
        return None
    counts = Counter(row.entry.split for row in used)
    deviating = []
    for name in HELD_OUT:
        requested = fraction(recipe.data, name)
        share = counts[name] / len(used)
        if abs(share - requested) > max(_MIN_TOLERANCE, _DEVIATIONS * sqrt(requested * (1 - requested) / len(used))):
            deviating.append(f"{name} has {share:.0%} of the rows instead of {requested:.0%}")
    if not deviating:
        return None
    group, size = Counter(row.group for row in used).most_common(1)[0]
    first = next(row.entry.where for row in used if row.group == group)
    return (
        f"{' and '.join(deviating)}: {size:,} rows {_same_group(split)} and stay in one split (the first is {first}); "
        f"set data.split.{'column' if split.by else 'by or data.split.column'} to divide them differently"
    )


def empty_split_hint(missing: Sequence[str], rows: Sequence[SpooledRow], data: DataBase) -> str:
    """Return a hint for splits that have no rows."""
    split = data.split
    if own := [name for name in missing if name in own_splits(data).values()]:
        listed = " and ".join(f"data.{name}" for name in own)
        return f"every row of {listed} was filtered or dropped: check its columns and data.filters"
    if split.column is not None:
        return f"no usable row has {' or '.join(missing)} in the column `{split.column}`"
    used = _rows_to_split(rows, data)
    groups = len({row.group for row in used})
    if groups == len(used):
        fractions = " and ".join(f"data.split.{name}" for name in missing)
        change = "lower data.split.valid or data.split.test" if "train" in missing else f"raise {fractions}"
        return f"add more rows, or {change}"
    unit = "prompt" if split.by is None else f"value of `{split.by}`"
    units = "prompts" if split.by is None else f"values of `{split.by}`"
    distinct = f"only 1 {unit}" if groups == 1 else f"only {groups:,} different {units}"
    by_hint = "" if split.by else ", or set data.split.by to the column whose equal values must stay together"
    return (
        f"the {len(used):,} rows have {distinct}, and rows that {_same_group(split)} stay in one split; add rows with "
        f"other {units}, or give each row's split in a column (data.split.column){by_hint}"
    )


def _rows_to_split(rows: Sequence[SpooledRow], data: DataBase) -> list[SpooledRow]:
    """Return the usable rows of `data.source`; sources of their own are not split."""
    own = own_splits(data)
    return [row for row in rows if row.index is not None and row.entry.source not in own]


def _same_group(split: Split) -> str:
    return "have the same prompt" if split.by is None else f"have the same `{split.by}`"
