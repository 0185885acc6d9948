"""The rows that a run uses: read, split, tokenized, mixed and compared here, or read from the files of `prepare`."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.progress import log
from tunesmith.core.records import Example
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.data.dedup import (
    Duplicate,
    SplitComparison,
    apply_leakage_policy,
    find_split_groups,
    report_split_groups,
    summarize_duplicates,
    warn_or_raise,
)
from tunesmith.data.mix import mix_sources
from tunesmith.data.process_rows import DropCounter, LedgerEntry, read_recipe_rows
from tunesmith.data.similarity import ShingleIndex
from tunesmith.data.sources import Row, matched_files, own_splits
from tunesmith.data.split import content_hash
from tunesmith.data.split_sizes import empty_split_hint, split_size_warning
from tunesmith.data.spool import Spool, SpooledRow
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.data.trained_rows import count_seen_rows, seen_rows_warning, unknown_overlap_warning
from tunesmith.data.workers import process_in_parallel
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.columns import double_brace_names, optional_columns
from tunesmith.recipe.held_out import all_sources, has_rows
from tunesmith.recipe.schema import Data, Recipe
from tunesmith.tasks.base import Task, is_empty_cell
from tunesmith.tasks.cells import MISSING, InvalidJson, find_cell

_ROWS_WITH_DATE = 20  # the first rows, in which a date that the chat template writes is looked for


@dataclass(frozen=True, slots=True)
class Dataset:
    """All rows of a recipe. The examples and tokens of the used ones are in the spool.

    Attributes:
        entries: the ledger entries of all rows.
        used: the rows of each split; a row that is used several times is in the list several times.
        copies: duplicates within train and leakage between the splits, see `SplitComparison.facts`.
        control_tokens: see `DropCounter.control_tokens`.
        trained_before: the held-out rows that the base was trained on, see `count_seen_rows`.
        empty: how many rows have each optional column empty.
        remarks: the messages that were logged.
    """

    entries: list[LedgerEntry]
    used: dict[str, list[SpooledRow]]
    copies: dict[str, Any]
    spool: Spool
    control_tokens: dict[str, Any]
    trained_before: dict[str, Any]
    empty: dict[str, int]
    remarks: list[str]

    def spool_indices(self, split: str) -> list[int]:
        """Return the indices of a split's rows in the spool."""
        return [row.index for row in self.used[split] if row.index is not None]

    def ledger_entries(self, split: str) -> list[LedgerEntry]:
        """Return the ledger entry of each row of a split."""
        return [row.entry for row in self.used[split]]

    def example(self, split: str, index: int) -> Example:
        """Return the example of the row at `index` in the split."""
        spool_index = self.used[split][index].index
        assert spool_index is not None
        return Example.from_json(json.loads(next(self.spool.examples([spool_index]))))

    def tokens(self, split: str) -> TokenDataset:
        """Return the tokens of all rows of a split."""
        return TokenDataset(self.spool.rows(self.spool_indices(split)))

    def training_hashes(self) -> frozenset[str]:
        """Return the hashes of the contents of all training rows."""
        return frozenset(row.content_hash for row in self.used["train"])

    def facts(self) -> dict[str, Any]:
        """Return the counts for the manifest: rows and why they are not used, tokens, lengths, duplicates."""
        reasons = {s: _count_reasons(self.entries, s) for s in ("dropped", "cut", "filtered", "unused")}
        blocks = [entry.block[0] for entry in self.entries if entry.block]
        tokens = {name: [row.entry.tokens for row in rows] for name, rows in self.used.items()}
        return {
            "counts": {n: len(rows) for n, rows in self.used.items()} | {s: sum(reasons[s].values()) for s in reasons},
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


class PreparedRows:
    """The rows that `prepare` wrote; the sources are not read."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._entries: dict[str, list[LedgerEntry]] = {split: [] for split in SPLITS}
        for entry in map(LedgerEntry.from_json, read_jsonl(run.ledger)):
            if entry.split is not None:
                self._entries[entry.split] += [entry] * entry.times
        self._examples = cache(lambda split: list(self._read(split)))
        self._training_hashes = cache(self._read_hashes)

    def facts(self) -> dict[str, Any]:
        """Return the counts that `prepare` wrote into its manifest."""
        return self._run.manifest("prepare") or {}

    def ledger_entries(self, split: str) -> Sequence[LedgerEntry]:
        """Return the ledger entry of each row of a split."""
        return self._entries[split]

    def example(self, split: str, index: int) -> Example:
        """Return the example of the row at `index` in the split."""
        return self._examples(split)[index]

    def tokens(self, split: str) -> TokenDataset:
        """Return the tokens of all rows of a split."""
        return TokenDataset(self._run.tokens(split))

    def training_hashes(self) -> frozenset[str]:
        """Return the hashes of the contents of all training rows; a block of a document counts as a row."""
        return self._training_hashes()

    def _read_hashes(self) -> frozenset[str]:
        return frozenset(content_hash([turn.text for turn in row.turns]) for row in self._read("train"))

    def _read(self, split: str) -> Iterator[Example]:
        return map(Example.from_json, read_jsonl(self._run.examples(split)))


UsedRows = Dataset | PreparedRows
"""The rows of each split in the order of the ledger, each as often as one pass uses it."""


def build_dataset(
    recipe: Recipe,
    task: Task,
    *,
    folder: Path,
    model: ModelFolder | None = None,
    on_row: Callable[[int], None] = lambda _: None,
    spool: Spool | None = None,
) -> Dataset:
    """Read all rows of a recipe, split and tokenize them, and apply the recipe's leakage policy.

    Args:
        folder: the folder that relative paths start from.
        model: the model with the task's tokenizer; with it, several processes share the work if there are many rows.
        on_row: called after every row with the number of rows so far.
        spool: where to store the rows; by default on the disk for temporary files.

    Raises:
        DataError: see `process_rows`; a split that the run needs has no rows; the recipe's leakage policy is `error`,
            and held-out rows duplicate training rows or were trained on before.
    """
    spool = spool or Spool()
    remarks: list[str] = []

    def remark(text: str) -> None:
        remarks.append(text)
        log(text)

    rows, control_tokens, empty = _read_all(recipe, task, folder, model, spool, on_row, remark)
    size_warning = split_size_warning(rows, recipe)  # before rows are left out for other reasons
    rows, used_once, copies = _choose_rows(rows, recipe, spool.shingles)
    if size_warning:
        remark(f"warning: {size_warning}")
    apply_leakage_policy(copies, recipe, remark)
    report_split_groups(copies, recipe, remark)
    trained_before = count_seen_rows(used_once, model)
    if warning := seen_rows_warning(trained_before, recipe):
        warn_or_raise([warning], "`leakage: warn` only warns", recipe, remark)
    elif warning := unknown_overlap_warning(recipe, model):
        remark(f"warning: {warning}")
    used = {name: [row for row in once for _ in range(row.entry.times)] for name, once in used_once.items()}
    return Dataset([row.entry for row in rows], used, copies, spool, control_tokens, trained_before, empty, remarks)


def build_set(
    recipe: Recipe, task: Task, *, folder: Path, model: ModelFolder, trained: UsedRows, name: str, spool: Spool
) -> Dataset:
    """Read and tokenize the rows of a further held-out set, all of which are test rows.

    Args:
        recipe: the run's recipe with the set in the place of its rows.
        folder: the folder that relative paths start from.
        model: the model with the task's tokenizer.
        trained: the rows of the run, for a warning of training rows in the set.
        name: the name of the set.

    Raises:
        DataError: see `process_rows`; the recipe's leakage policy is `error`, and the set contains training rows.
    """
    remarks: list[str] = []

    def remark(text: str) -> None:
        remarks.append(text)
        log(f"{name}: {text}")

    rows, control_tokens, empty = _read_all(recipe, task, folder, model, spool, lambda _: None, remark)
    used = [replace(row, entry=replace(row.entry, times=1)) for row in rows if row.index is not None]
    hashes = trained.training_hashes()
    copies = [row.entry.where for row in used if row.content_hash in hashes]
    if copies:
        warning = f"{len(copies):,} of {len(used):,} rows are training rows too, such as {copies[0]}"
        hint = f"leave them out of training, or out of the set `{name}`"
        warn_or_raise([warning], hint, recipe, remark, remedy=", so they show nothing about forgetting")
    splits: dict[str, list[SpooledRow]] = {"train": [], "valid": [], "test": used}
    facts = {"test": {"rows": len(used), "exact": len(copies)}}
    return Dataset([row.entry for row in rows], splits, facts, spool, control_tokens, {}, empty, remarks)


def _read_all(
    recipe: Recipe,
    task: Task,
    folder: Path,
    model: ModelFolder | None,
    spool: Spool,
    on_row: Callable[[int], None],
    remark: Callable[[str], None],
) -> tuple[list[SpooledRow], dict[str, Any], dict[str, int]]:
    """Return all rows in the spool, the facts about control tokens, and the counts of empty optional columns.

    Raises:
        DataError: see `process_rows`.
    """
    rows: list[SpooledRow] = []
    dated: str | None = None
    for text in matched_files(all_sources(recipe.data), folder=folder):
        remark(text)
    counter, empty = DropCounter(), dict.fromkeys(sorted(optional_columns(recipe.data)), 0)
    source_rows = _count_empty(read_recipe_rows(recipe, folder), recipe, empty, remark)
    for encoded in process_in_parallel(recipe, task, model, source_rows):
        counter.count(encoded.entry, encoded.notes)
        if dated is None and encoded.example and len(rows) < _ROWS_WITH_DATE:
            turns = Example.from_json(json.loads(encoded.example)).turns
            dated = encoded.entry.where if task.changes_daily(turns) else None
        rows.append(spool.add(encoded))
        on_row(encoded.entry.row)
    counter.check(recipe)
    for column, count in empty.items():
        remark(f"`{column}` is empty in {count:,} of {rows[-1].entry.row:,} rows")
    if warning := control_token_warning(control_tokens := counter.control_tokens(), recipe.data):
        remark(f"warning: {warning}")
    if dated is not None:
        remedy = "set data.template_date, so that training, evaluation and serving have the same one"
        remark(f"warning: the chat template writes the current date into rows, such as {dated}; {remedy}")
    return rows, control_tokens, empty


def _count_empty(
    rows: Iterator[Row], recipe: Recipe, empty: dict[str, int], remark: Callable[[str], None]
) -> Iterator[Row]:
    """Yield the rows, and count in `empty` how many of them have each optional column empty.

    Warn of templates with a column of the first row in double braces, because it is then text and not a column.
    """
    double_braces = double_brace_names(recipe.data)
    for row in rows:
        for name in double_braces:
            if name in row.values:
                text = f"`{{{{{name}}}}}` in a template is the text {{{name}}}"
                remark(f"warning: {text}; for the column, write single braces")
        double_braces = ()
        for column in empty:
            with suppress(InvalidJson):  # the row will be dropped
                cell = find_cell(row.values, column)
                empty[column] += cell is MISSING or is_empty_cell(cell)
        yield row


def control_token_warning(control_tokens: Mapping[str, Any], data: Data) -> str | None:
    """Return a warning with the number of rows whose text contains control tokens of the model; None without."""
    if not control_tokens["rows"]:
        return None
    remedy = "leave them out, because the chat template writes its own"
    if data.task != "chat":
        remedy = "use `task: chat`, whose template writes real ones, or leave them out"
    if data.task == "text":
        remedy = "set data.control_tokens: true if they are intended, or leave them out"
    return (
        f"{control_tokens['rows']:,} rows contain control tokens of this model as text, such as "
        f"{control_tokens['token']} (first in {control_tokens['first']}); they are encoded as plain text; {remedy}"
    )


def _choose_rows(
    rows: Sequence[SpooledRow], recipe: Recipe, shingle_index: ShingleIndex
) -> tuple[list[SpooledRow], dict[str, list[SpooledRow]], dict[str, Any]]:
    """Return all rows, the used rows of each split, and the facts about duplicates.

    With `leakage: drop`, training rows that duplicate held-out rows are left out, and others are chosen instead. These
    may be duplicates too, and which rows are near-duplicates depends slightly on all compared rows (see `similarity`),
    so this repeats until there are none.
    """
    left_out: dict[int, Duplicate] = {}
    while True:
        chosen = mix_sources(rows, recipe, {number: duplicate.reason for number, duplicate in left_out.items()})
        used = {name: [row for row in chosen if row.entry.split == name and row.index is not None] for name in SPLITS}
        missing = empty_splits({name: len(split) for name, split in used.items()}, recipe)
        if missing:
            counts = ", ".join(f"{name} {len(used[name])}" for name in SPLITS)
            counts += f"; {len(left_out)} left out as duplicates of held-out rows" if left_out else ""
            hint = empty_split_hint(missing, rows, recipe.data)
            raise DataError(f"no rows for {' and '.join(missing)} ({counts})", hint=hint, code="empty-split")
        comparison = SplitComparison(used, shingle_index, recipe.data.near_duplicate_threshold)
        leaking = comparison.leaking_rows() if recipe.data.leakage == "drop" else []
        if not leaking:
            break
        left_out |= {duplicate.row.entry.row: duplicate for duplicate in leaking}
    copies = comparison.facts()
    if (recipe.data.split.column and recipe.data.split.by) or own_splits(recipe.data):  # else no group is ever divided
        copies["groups"] = find_split_groups(used)
    if left_out:
        by_similarity = sorted(left_out.values(), key=lambda duplicate: -duplicate.similarity)
        copies["left_out"] = summarize_duplicates(by_similarity)
    return chosen, used, copies


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


def empty_splits(counts: dict[str, int], recipe: Recipe) -> list[str]:
    """Return the splits that the run needs and that have no rows."""
    selects_by_valid = bool(recipe.train.valid_metrics) or recipe.train.select_best_by != "loss"
    promised = recipe.data.split.column is None and has_rows(recipe.data, "valid")
    needed = {"train": True, "valid": selects_by_valid or promised, "test": True}
    return [name for name in SPLITS if needed[name] and not counts.get(name)]


def _count_reasons(entries: Sequence[LedgerEntry], status: str) -> dict[str, int]:
    return dict(Counter(entry.reason or "" for entry in entries if entry.status == status))
