"""The rows that a run uses, from memory or from the files of `prepare`."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.records import Example
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.data.process_rows import LedgerEntry
from tunesmith.data.token_dataset import TokenDataset


class UsedRows(Protocol):
    """The rows of each split in the order of the ledger, each as often as one pass uses it."""

    def facts(self) -> dict[str, Any]:
        """Return the counts over all rows, see `Dataset.facts`."""

    def ledger_entries(self, split: str) -> Sequence[LedgerEntry]:
        """Return the ledger entry of each row of a split."""

    def example(self, split: str, index: int) -> Example:
        """Return the example of the row at `index` in the split."""

    def tokens(self, split: str) -> TokenDataset:
        """Return the tokens of all rows of a split."""


class PreparedRows:
    """The rows that `prepare` wrote; the sources are not read."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._entries: dict[str, list[LedgerEntry]] = {split: [] for split in SPLITS}
        for entry in map(LedgerEntry.from_json, read_jsonl(run.ledger)):
            if entry.split is not None:
                self._entries[entry.split] += [entry] * entry.times
        self._examples = cache(self._read)

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

    def _read(self, split: str) -> list[Example]:
        return [Example.from_json(line) for line in read_jsonl(self._run.examples(split))]
