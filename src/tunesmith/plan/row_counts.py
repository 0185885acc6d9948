"""The rows and tokens of a run, as `prepare` counts them."""

from dataclasses import dataclass, fields
from typing import Any

from tunesmith.core.rundir import SPLITS


@dataclass(frozen=True, slots=True)
class RowCounts:
    """The counts of a run's rows; all fields but `counts` are as in the manifest of `prepare`.

    Attributes:
        counts: rows of each split.
        sources: rows of each split, by source.
        blocks: numbers of {documents, blocks} of `task: text`.
        dropped: rows by the reason why they were dropped; likewise `filtered`, `cut` and `unused`.
        copies: numbers of duplicates and near-duplicates.
        tokens: tokens of each split.
        lengths: a histogram of row lengths for each split.
    """

    counts: dict[str, int]
    sources: dict[str, dict[str, int]]
    blocks: dict[str, int]
    dropped: dict[str, int]
    filtered: dict[str, int]
    cut: dict[str, int]
    unused: dict[str, int]
    copies: dict[str, Any]
    tokens: dict[str, int]
    lengths: dict[str, dict[str, Any]]

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "RowCounts":
        """Take the counts from what `UsedRows.facts` returns."""
        kept = {field.name: facts[field.name] for field in fields(cls) if field.name != "counts"}
        return cls(counts={split: facts["counts"][split] for split in SPLITS}, **kept)

    @property
    def longest(self) -> int:
        """The number of tokens of the longest row of all splits."""
        return max(int(lengths["max"]) for lengths in self.lengths.values())
