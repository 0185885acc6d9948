"""All rows of a recipe, placed, rendered, mixed and compared: what `prepare` writes, and `plan` only counts."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.progress import log
from tunesmith.core.records import Example
from tunesmith.core.rundir import SPLITS
from tunesmith.data.dedup import (
    Duplicate,
    SplitComparison,
    apply_leakage_policy,
    report_split_groups,
    split_groups,
    summarize_duplicates,
)
from tunesmith.data.mix import mix_sources
from tunesmith.data.process_rows import DropCounter, LedgerEntry, read_recipe_rows
from tunesmith.data.similarity import ShingleIndex
from tunesmith.data.sources import Row
from tunesmith.data.split_sizes import empty_split_hint, split_size_warning
from tunesmith.data.spool import Spool, SpooledRow
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.data.trained_rows import count_seen_rows, seen_rows_warning, unknown_overlap_warning
from tunesmith.data.workers import process_in_parallel
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.columns import double_brace_names, optional_columns
from tunesmith.recipe.schema import Data, Recipe, Split, Train
from tunesmith.tasks.base import Task, is_empty_cell


@dataclass(frozen=True, slots=True)
class Dataset:
    """Every row's line for the ledger; the rows of each split as often as they are used; what says the same.

    What the rows are lies on the shelf. `remarks` are the messages about them that were printed.
    """

    entries: list[LedgerEntry]
    used: dict[str, list[SpooledRow]]
    copies: dict[str, Any]
    shelf: Spool
    control_tokens: dict[str, Any]
    trained_before: dict[str, Any]
    empty: dict[str, int]
    remarks: list[str]

    def places(self, split: str) -> list[int]:
        """Return where the rows of a split lie on the shelf."""
        return [row.place for row in self.used[split] if row.place is not None]

    def ledger_entries(self, split: str) -> list[LedgerEntry]:
        """Return the ledger's line of each row of a split."""
        return [row.entry for row in self.used[split]]

    def example(self, split: str, place: int) -> Example:
        """Return the example of the row at a place among these lines."""
        kept = self.used[split][place].place
        assert kept is not None
        return Example.from_json(json.loads(next(self.shelf.examples([kept]))))

    def tokens(self, split: str) -> TokenDataset:
        """Return the tokens of all rows of a split."""
        return TokenDataset.from_examples(self.shelf.rows(self.places(split)))

    def facts(self) -> dict[str, Any]:
        """Return what can be counted: rows and why they are not used, tokens, lengths, copies."""
        status = Counter(entry.status for entry in self.entries)
        reasons = {s: _reasons(self.entries, s) for s in ("dropped", "cut", "filtered", "unused")}
        blocks = [entry.block[0] for entry in self.entries if entry.block]
        tokens = {name: [row.entry.tokens for row in rows] for name, rows in self.used.items()}
        return {
            "counts": {**{name: len(rows) for name, rows in self.used.items()}, **{s: status[s] for s in reasons}},
            **reasons,
            "blocks": {"documents": sum(block == 1 for block in blocks), "blocks": len(blocks)},
            "sources": {
                name: {split: sum(row.entry.source == name for row in rows) for split, rows in self.used.items()}
                for name in dict.fromkeys(entry.source for entry in self.entries)
            },
            "tokens": {name: sum(lengths) for name, lengths in tokens.items()},
            "trained_tokens": {name: sum(row.entry.trained for row in rows) for name, rows in self.used.items()},
            "lengths": {name: histogram(lengths) for name, lengths in tokens.items()},
            "copies": self.copies,
            "control_tokens": self.control_tokens,
            "trained_before": self.trained_before,
            "empty": self.empty,
            "remarks": self.remarks,
        }


def build_dataset(
    recipe: Recipe,
    task: Task,
    *,
    folder: Path,
    model: ModelFolder | None = None,
    seen: Callable[[int], None] = lambda _: None,
    shelf: Spool | None = None,
) -> Dataset:
    """Return all rows of a recipe; of leakage say, or do, what the recipe wants.

    Args:
        folder: what relative paths are relative to.
        model: whose tokenizer the task has; with it, several processes share the work once there are many rows.
        seen: told after every row how many have been read.
        shelf: where to keep what was read; by default on the disk for temporary files.

    Raises:
        DataError: see `process_rows.examine`; a split that is needed has no rows; leakage, if the recipe says `error`.
    """
    shelf = shelf or Spool()
    rows: list[SpooledRow] = []
    remarks: list[str] = []

    def remark(text: str) -> None:
        remarks.append(text)
        log(text)

    tally, empty = DropCounter(), dict.fromkeys(sorted(optional_columns(recipe.data)), 0)
    for parcel in process_in_parallel(
        recipe, task, model, _watched(read_recipe_rows(recipe, folder), recipe, empty, remark)
    ):
        tally.count(parcel.entry, parcel.remarks)
        rows.append(shelf.keep(parcel))
        seen(parcel.entry.row)
    tally.check(recipe)
    for column, count in empty.items():
        remark(f"`{column}` is empty in {count:,} of {rows[-1].entry.row:,} rows")
    if told := control_token_warning(spelled := tally.spelled(), recipe.data):
        remark(f"warning: {told}")
    far = split_size_warning(rows, recipe)  # before rows are left out for other reasons
    rows, once, copies = _chosen(rows, recipe, shelf.runs)
    if far:
        remark(f"warning: {far}")
    apply_leakage_policy(copies, recipe, remark)
    report_split_groups(copies, recipe, remark)
    before = count_seen_rows(once, model)
    if told := seen_rows_warning(before, recipe):
        if recipe.data.leakage == "error":
            raise DataError(told, where="data.leakage", hint="`leakage: warn` only says it")
        remark(f"warning: {told}")
    elif told := unknown_overlap_warning(recipe, model):
        remark(f"warning: {told}")
    used = {name: [row for row in found for _ in range(row.entry.times)] for name, found in once.items()}
    return Dataset([row.entry for row in rows], used, copies, shelf, spelled, before, empty, remarks)


def _watched(
    rows: Iterator[Row], recipe: Recipe, empty: dict[str, int], remark: Callable[[str], None]
) -> Iterator[Row]:
    """Pass rows on, and count in `empty` how many of them have each optional column empty.

    Remark if a template has a column of the first row in double braces, which make it text.
    """
    doubled = double_brace_names(recipe.data)
    for row in rows:
        for name in doubled:
            if name in row.values:
                written = f"{{{{{name}}}}}"
                told = f"`{written}` in a template is the text {{{name}}}; for the column, write single braces"
                remark(f"warning: {told}")
        doubled = ()
        for column in empty:
            empty[column] += is_empty_cell(row.values.get(column))
        yield row


def control_token_warning(found: Mapping[str, Any], data: Data) -> str | None:
    """Return a warning that counts the rows that spell control tokens of the model; None if none does."""
    if not found["rows"]:
        return None
    helps = "leave them out, as the chat template writes its own"
    if data.task != "chat":
        helps = "write chats with `task: chat`, whose template writes real ones, or leave them out"
    if data.task == "text":
        helps = "set data.control_tokens: true if they are meant, or leave them out"
    return (
        f"{found['rows']:,} rows spell control tokens of this model, such as {found['token']} "
        f"(first {found['first']}), which are read as plain letters; {helps}"
    )


def _chosen(
    rows: Sequence[SpooledRow], recipe: Recipe, runs: ShingleIndex
) -> tuple[list[SpooledRow], dict[str, list[SpooledRow]], dict[str, Any]]:
    """Return all rows, those of each split that are used, and what says the same.

    With `leakage: drop`, training rows that say what held-out rows say leave, and rows are chosen anew from the others.
    Those may be copies too, and what counts as one depends a little on all rows compared (see `similarity`): it goes on
    until none is found.
    """
    left: dict[int, Duplicate] = {}
    while True:
        chosen = mix_sources(rows, recipe, {number: copy.reason for number, copy in left.items()})
        once = {name: [row for row in chosen if row.entry.split == name and row.place is not None] for name in SPLITS}
        missing = empty_splits({name: len(found) for name, found in once.items()}, recipe.data.split, recipe.train)
        if missing:
            counts = ", ".join(f"{name} {len(once[name])}" for name in SPLITS)
            counts += f"; {len(left)} left out as copies of held-out rows" if left else ""
            hint = empty_split_hint(missing, rows, recipe.data.split)
            raise DataError(f"no rows for {' and '.join(missing)} ({counts})", hint=hint)
        compared = SplitComparison(once, runs, recipe.data.near_duplicate_threshold)
        leaking = compared.leaking() if recipe.data.leakage == "drop" else []
        if not leaking:
            break
        left |= {copy.row.entry.row: copy for copy in leaking}
    copies = compared.facts()
    if recipe.data.split.column and recipe.data.split.by:  # else groups are never parted
        copies["groups"] = split_groups(once)
    if left:
        copies["left_out"] = summarize_duplicates(sorted(left.values(), key=lambda copy: -copy.similarity))
    return chosen, once, copies


def histogram(lengths: Sequence[int]) -> dict[str, Any]:
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


def empty_splits(counts: dict[str, int], split: Split, train: Train) -> list[str]:
    """Return the splits that the run needs and that have no rows."""
    chosen_by_valid = bool(train.valid_metrics) or train.select_best_by != "loss"
    needed = {"train": True, "valid": chosen_by_valid or (split.column is None and split.valid > 0), "test": True}
    return [name for name in SPLITS if needed[name] and not counts.get(name)]


def _reasons(entries: Sequence[LedgerEntry], status: str) -> dict[str, int]:
    return dict(Counter(entry.reason or "" for entry in entries if entry.status == status))
