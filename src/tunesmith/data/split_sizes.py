"""Messages about splits that are empty or not as large as asked: which rows stay together, and what helps."""

from collections import Counter
from collections.abc import Sequence
from math import sqrt

from tunesmith.data.spool import SpooledRow
from tunesmith.recipe.schema import Recipe, Split

# A split may differ from what was asked by this share of the rows, or by so many standard deviations of its size if
# rows were placed one by one, whichever is more.
_SLACK, _DEVIATIONS = 0.05, 4


def split_size_warning(rows: Sequence[SpooledRow], recipe: Recipe) -> str | None:
    """Return a warning that a split is much larger or smaller than asked, and why; None if none is."""
    split, used = recipe.data.split, [row for row in rows if row.place is not None]
    if split.column is not None or not used:
        return None
    counts = Counter(row.entry.split for row in used)
    off = []
    for name, asked in (("valid", split.valid), ("test", split.test)):
        share = counts[name] / len(used)
        if abs(share - asked) > max(_SLACK, _DEVIATIONS * sqrt(asked * (1 - asked) / len(used))):
            off.append(f"{name} has {share:.0%} of the rows, {asked:.0%} were asked for")
    if not off:
        return None
    group, size = Counter(row.group for row in used).most_common(1)[0]
    first = next(row.entry.where for row in used if row.group == group)
    return (
        f"{' and '.join(off)}: {size:,} rows {_alike(split)} and stay in one split (the first is {first}); "
        f"set data.split.{'column' if split.by else 'by or data.split.column'} to divide them otherwise"
    )


def empty_split_hint(missing: Sequence[str], rows: Sequence[SpooledRow], split: Split) -> str:
    """Return a hint for splits that have no rows."""
    if split.column is not None:
        return f"no row that can be used says {' or '.join(missing)} in the column `{split.column}`"
    used = [row for row in rows if row.place is not None]
    groups = len({row.group for row in used})
    if groups == len(used):
        raised = " and ".join(f"data.split.{name}" for name in missing)
        lowered = "lower data.split.valid or data.split.test"
        return f"give more rows, or {lowered if 'train' in missing else f'raise {raised}'}"
    one, many = ("prompt", "prompts") if split.by is None else (f"value of `{split.by}`", f"values of `{split.by}`")
    distinct = f"only 1 {one}" if groups == 1 else f"only {groups:,} different {many}"
    stays = "" if split.by else ", or name what must stay together in data.split.by"
    return (
        f"the {len(used):,} rows have {distinct}, and rows that {_alike(split)} stay in one split; add rows with other "
        f"{many}, or give each row's split in a column (data.split.column){stays}"
    )


def _alike(split: Split) -> str:
    return "ask the same" if split.by is None else f"have the same `{split.by}`"
