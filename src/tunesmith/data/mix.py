"""Decide how often each training row is used, by duplicates, source weights and `train_rows`.

Held-out rows are not changed. All choices are made by hash, so the same recipe and rows give the same training rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tunesmith.data.process_rows import LedgerEntry
from tunesmith.data.sources import named_sources
from tunesmith.data.split import choose_by_hash
from tunesmith.data.spool import SpooledRow
from tunesmith.recipe.schema import Recipe


def mix_sources(rows: Sequence[SpooledRow], recipe: Recipe, left_out: Mapping[int, str]) -> list[SpooledRow]:
    """Return all rows, with unused training rows marked as such and `times` set on the others.

    First `left_out` rows and duplicates are removed, then the weights of the sources apply, and `train_rows` are chosen
    from the result. Weights and `train_rows` count blocks if a document is split into several.

    Args:
        left_out: the numbers of training rows to leave out, with the reason.
    """
    training = [i for i, row in enumerate(rows) if row.entry.split == "train" and row.index is not None]
    reasons = {i: left_out[row.entry.row] for i, row in enumerate(rows) if row.entry.row in left_out}
    if recipe.data.duplicates == "drop":
        reasons = _duplicates(training, rows) | reasons
    times = {i: 1 for i in training if i not in reasons}
    for name, source in named_sources(recipe.data.source).items():
        if source.weight != 1:
            from_source = [i for i in times if rows[i].entry.source == name]
            whole, fraction = divmod(source.weight, 1)
            extra = _choose(from_source, rows, round(fraction * len(from_source)), recipe.seed, "weight")
            times |= {i: int(whole) + (i in extra) for i in from_source}
            reasons |= {i: f"beyond weight {source.weight:g}" for i in from_source if times[i] == 0}
    used = [i for i, count in times.items() for _ in range(count)]
    limit = recipe.data.train_rows
    if limit is not None:
        count = limit if isinstance(limit, int) else max(1, round(limit * len(used)))
        chosen = _choose(used, rows, count, recipe.seed, "choose")
        reasons |= {i: "beyond train_rows" for i in used if i not in chosen}
        used = list(chosen.elements())
    counts = Counter(used)
    return [
        _mark_unused(row.entry, reasons[i]) if i in reasons else _with_times(row, counts[i]) if i in counts else row
        for i, row in enumerate(rows)
    ]


def _choose(indices: Sequence[int], rows: Sequence[SpooledRow], count: int, seed: int, purpose: str) -> Counter[int]:
    """Choose `count` of the indices by hash; return how often each was chosen. Rows with equal ids count separately."""
    seen: Counter[str | None] = Counter()
    index_of: dict[str, int] = {}
    for index in indices:
        id_ = rows[index].entry.id
        index_of[f"{id_} {seen[id_]}" if seen[id_] else str(id_)] = index
        seen[id_] += 1
    return Counter(index_of[name] for name in choose_by_hash(index_of, count, seed, purpose=purpose))


def _duplicates(indices: Sequence[int], rows: Sequence[SpooledRow]) -> dict[int, str]:
    """Return the indices of rows with the content of an earlier row, with the reason."""
    first_with: dict[str, int] = {}
    for i in indices:
        first_with.setdefault(rows[i].content_hash, rows[i].entry.row)
    duplicates = (i for i in indices if first_with[rows[i].content_hash] != rows[i].entry.row)
    return dict.fromkeys(duplicates, "duplicate of an earlier row")


def _with_times(row: SpooledRow, times: int) -> SpooledRow:
    return row if times == row.entry.times else replace(row, entry=replace(row.entry, times=times))


def _mark_unused(entry: LedgerEntry, reason: str) -> SpooledRow:
    return SpooledRow(replace(entry, status="unused", reason=reason, times=0, tokens=0, trained=0))
