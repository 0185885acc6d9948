"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def closest(word: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the choice that is most similar to `word`; None if none reaches `cutoff` (difflib's ratio, 0 to 1)."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return a hint that names the closest choice, or all of them if none is close."""
    names = list(choices)
    near = closest(word, names, cutoff=cutoff)
    return f"did you mean `{near}`?" if near else f"known are {', '.join(names)}"
