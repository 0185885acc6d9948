"""How often each training row is used: duplicates, weights of mixed sources, a limit. Held-out rows stay as they are.

Everything is chosen by hash, so the same recipe over the same rows gives the same training rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from tunesmith.data.process_rows import LedgerEntry
from tunesmith.data.sources import named_sources
from tunesmith.data.split import choose_by_hash
from tunesmith.data.spool import SpooledRow
from tunesmith.recipe.schema import Recipe


def mix_sources(rows: Sequence[SpooledRow], recipe: Recipe, left_out: Mapping[int, str]) -> list[SpooledRow]:
    """Return all rows, where training rows that are not used say so and others how often they are.

    A row's `times` is 1 unless its source has another weight. First `left_out` and duplicates leave, then the weights
    count, and `train_rows` is taken from what they make. Both count blocks where a document is learned in several.

    Args:
        left_out: why training rows leave, by their number.
    """
    reasons = {i: left_out[row.entry.row] for i, row in enumerate(rows) if row.entry.row in left_out}
    if recipe.data.duplicates == "drop":
        reasons = _repeated(rows) | reasons
    times = {
        i: 1 for i, row in enumerate(rows) if row.entry.split == "train" and row.place is not None and i not in reasons
    }
    for name, source in named_sources(recipe.data.source).items():
        if source.weight != 1:
            mine = [i for i in times if rows[i].entry.source == name]
            whole, part = divmod(source.weight, 1)
            more = _chosen(mine, rows, round(part * len(mine)), recipe.seed, "weight")
            times |= {i: int(whole) + (i in more) for i in mine}
            reasons |= {i: f"beyond weight {source.weight:g}" for i in mine if times[i] == 0}
    used = [i for i, count in times.items() for _ in range(count)]
    limit = recipe.data.train_rows
    if limit is not None:
        count = limit if isinstance(limit, int) else max(1, round(limit * len(used)))
        left = _chosen(used, rows, count, recipe.seed, "choose")
        reasons |= {i: "beyond train_rows" for i in used if i not in left}
        used = list(left.elements())
    counts = Counter(used)
    return [
        _unused(row.entry, reasons[i]) if i in reasons else _used(row, counts[i]) if i in counts else row
        for i, row in enumerate(rows)
    ]


def _chosen(places: Sequence[int], rows: Sequence[SpooledRow], count: int, seed: int, purpose: str) -> Counter[int]:
    """Return how often each place is among `count` of them; equal rows have one id, and rows are what is counted."""
    seen: Counter[str | None] = Counter()
    names: dict[str, int] = {}
    for place in places:
        one = rows[place].entry.id
        names[f"{one} {seen[one]}" if seen[one] else str(one)] = place
        seen[one] += 1
    return Counter(names[name] for name in choose_by_hash(names, count, seed, purpose=purpose))


def _repeated(rows: Sequence[SpooledRow]) -> dict[int, str]:
    """Return why they leave for all training rows that say what one before them says."""
    seen: set[str] = set()
    reasons: dict[int, str] = {}
    training = [i for i, row in enumerate(rows) if row.entry.split == "train" and row.place is not None]
    for _, blocks in groupby(training, key=lambda i: rows[i].entry.row):
        places = list(blocks)
        said = rows[places[0]].said
        if said in seen:
            reasons |= dict.fromkeys(places, "says what a row before it says")
        seen.add(said)
    return reasons


def _used(row: SpooledRow, times: int) -> SpooledRow:
    return row if times == row.entry.times else replace(row, entry=replace(row.entry, times=times))


def _unused(entry: LedgerEntry, reason: str) -> SpooledRow:
    return SpooledRow(replace(entry, status="unused", reason=reason, times=0, tokens=0, trained=0))
