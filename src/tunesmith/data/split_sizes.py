"""Explain why a split is empty or differs from its requested size, and how to correct it."""

from collections import Counter
from collections.abc import Sequence
from math import sqrt

from tunesmith.data.spool import SpooledRow
from tunesmith.recipe.schema import Recipe, Split

# The tolerated difference: this fraction of the rows, or this many standard deviations of the size of a split of
# independently assigned rows, whichever is more.
_MIN_TOLERANCE, _DEVIATIONS = 0.05, 4


def split_size_warning(rows: Sequence[SpooledRow], recipe: Recipe) -> str | None:
    """Return a warning that a split is much larger or smaller than requested, and why; None if none is."""
    split, used = recipe.data.split, [row for row in rows if row.index is not None]
    if split.column is not None or not used:
        return None
    counts = Counter(row.entry.split for row in used)
    deviating = []
    for name, requested in (("valid", split.valid), ("test", split.test)):
        fraction = counts[name] / len(used)
        if abs(fraction - requested) > max(_MIN_TOLERANCE, _DEVIATIONS * sqrt(requested * (1 - requested) / len(used))):
            deviating.append(f"{name} has {fraction:.0%} of the rows instead of {requested:.0%}")
    if not deviating:
        return None
    group, size = Counter(row.group for row in used).most_common(1)[0]
    first = next(row.entry.where for row in used if row.group == group)
    return (
        f"{' and '.join(deviating)}: {size:,} rows {_same_group(split)} and stay in one split (the first is {first}); "
        f"set data.split.{'column' if split.by else 'by or data.split.column'} to divide them differently"
    )


def empty_split_hint(missing: Sequence[str], rows: Sequence[SpooledRow], split: Split) -> str:
    """Return a hint for splits that have no rows."""
    if split.column is not None:
        return f"no usable row has {' or '.join(missing)} in the column `{split.column}`"
    used = [row for row in rows if row.index is not None]
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


def _same_group(split: Split) -> str:
    return "have the same prompt" if split.by is None else f"have the same `{split.by}`"
