"""Assign rows to splits and choose rows by hashes, independent of file order and of the other rows."""

import hashlib
import heapq
import re
import unicodedata
from collections.abc import Iterable, Sequence

from tunesmith.core.files import digest_of

SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "dev", "val", "eval"),
    "test": ("test",),
}
"""The names that data sets give to each split, the most usual first."""

# Invisible characters: soft hyphen, zero-width spaces and joiners, direction marks, byte order mark.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")


def split_named(name: str) -> str | None:
    """Return the split that a data set calls so; None if no split is called so."""
    return next((split for split, names in SPLIT_NAMES.items() if name.strip().lower() in names), None)


def assign_split(group: str, *, valid: float, test: float, seed: int) -> str:
    """Return the split of a group: `train`, `valid` or `test`.

    The split depends on the arguments only, so appending or reordering rows moves no other row. Test groups have the
    lowest hashes and valid groups the highest, so changing one fraction does not change the other split.
    """
    position = _uniform("split", seed, group)
    if position < test:
        return "test"
    return "valid" if position >= 1 - valid else "train"


def choose_by_hash(ids: Iterable[str], count: int | None, seed: int, *, purpose: str = "choose") -> set[str]:
    """Return the `count` ids with the lowest hashes; all ids if `count` is None or larger than their number.

    Repeated ids count once. A new id replaces at most one other, and the order of the ids does not matter.

    Args:
        purpose: part of the hash. Choosing among ids that an earlier choice returned needs another purpose; otherwise
            all of them would have low hashes.
    """
    distinct = set(ids)
    if count is None or count >= len(distinct):
        return distinct
    # With the hash of the split instead of a purpose of its own, a subsample of train would be biased.
    return set(heapq.nsmallest(count, distinct, key=lambda id_: (_uniform(purpose, seed, id_), id_)))


def normalize_text(text: str) -> str:
    """Return the text with compatibility forms (full width, ligatures), case and whitespace normalized.

    Invisible characters are removed. Prompts that are equal after this stay in one split.
    """
    if text.isascii():  # only case and whitespace can differ
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    # Case folding decomposes some characters that NFKC composes again.
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def content_hash(texts: Sequence[str]) -> str:
    """Return a digest of the normalized texts of a row's turns: equal for exact duplicates."""
    return digest_of([normalize_text(text) for text in texts])


def _uniform(purpose: str, seed: int, text: str) -> float:
    """Return a number in [0, 1) with 53 hash bits, the same on every platform."""
    key = f"{purpose}\0{seed}\0{text}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 11) / 2**53
