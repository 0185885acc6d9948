"""Where a row goes: decided by a hash of its group, never by its place in the file or by the rows around it."""

import hashlib
import heapq
import re
import unicodedata
from collections.abc import Iterable, Sequence

from tunesmith.core.files import digest_of

# Characters that nobody sees: soft hyphen, zero-width spaces and joiners, direction marks, byte order mark.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")


def assign_split(group: str, *, valid: float, test: float, seed: int) -> str:
    """Return the split of a group: `train`, `valid` or `test`.

    The answer depends on nothing but the arguments, so appended or reordered rows move no other row. Test groups
    come from the low end of the hash and valid groups from the high end: changing one fraction leaves the other
    split as it is.

    Raises:
        ValueError: a fraction is negative, or the two leave less than nothing to train on.
    """
    if valid < 0 or test < 0 or valid + test > 1:
        raise ValueError(f"fractions must not be negative and not add up to more than 1: valid={valid}, test={test}")
    place = _uniform("split", seed, group)
    if place < test:
        return "test"
    return "valid" if place >= 1 - valid else "train"


def choose_by_hash(ids: Iterable[str], count: int | None, seed: int, *, purpose: str = "choose") -> set[str]:
    """Return `count` of the ids, or all of them if `count` is None or larger: those with the lowest hashes.

    A new id takes the place of one other at most, whatever the order. Repeated ids count once. Choices from what
    another choice left need another purpose, or they would meet low hashes only.

    Raises:
        ValueError: `count` is negative.
    """
    distinct = set(ids)
    if count is None or count >= len(distinct):
        return distinct
    if count < 0:
        raise ValueError(f"cannot choose {count} rows")
    # The purpose is part of the hash: with the split's own hash, a subsample of train would be a biased one.
    return set(heapq.nsmallest(count, distinct, key=lambda one: (_uniform(purpose, seed, one), one)))


def normalize_text(text: str) -> str:
    """Return the text without what makes near-identical prompts differ, so that they fall in one split.

    Compatibility forms (full width, ligatures), case, whitespace and invisible characters are evened out.
    """
    if text.isascii():  # where all but case and blanks is even already
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    # Folding takes some characters apart that normalising puts together again.
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def content_hash(texts: Sequence[str]) -> str:
    """Return a digest of what is said, however it is spaced and capitalised: equal for exact duplicates."""
    return digest_of([normalize_text(text) for text in texts])


def _uniform(purpose: str, seed: int, text: str) -> float:
    """Return a number in [0, 1) with 53 random bits: the same on every platform."""
    key = f"{purpose}\0{seed}\0{text}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 11) / 2**53
