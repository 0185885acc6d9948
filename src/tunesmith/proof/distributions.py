"""Compare the next-token distributions of two programs, of which each gives only the most probable tokens."""

import math
from collections.abc import Mapping

Scores = Mapping[int, float]
"""Log-probabilities, in nats, of some tokens: the most probable ones, and the one that the answer has."""

_TINY = 1e-12
_IMPOSSIBLE = -9999.0  # as vLLM writes the log-probability of a token that cannot be chosen


def finite(scores: Mapping[int, float | None]) -> Scores:
    """Return log-probabilities in which those that are no numbers are very low, so that they cannot be within a limit.

    A damaged model gives NaN, which JSON may write as null.
    """
    return {t: s if s is not None and math.isfinite(s) else _IMPOSSIBLE for t, s in scores.items()}


def divergence(reference: Scores, other: Scores, top: int) -> float:
    """Return the Kullback-Leibler divergence of `other` from `reference`, in nats, all other tokens counted as one.

    Merging outcomes can only lower it (the data processing inequality: Cover and Thomas, "Elements of Information
    Theory", 2nd edition, section 2.8), so this is a lower bound. A token that `other` does not give counts as its last
    of `top`, which is at least as probable.
    """
    bound = sorted(other.values(), reverse=True)[:top][-1]
    pairs = [(score, other.get(token, bound)) for token, score in reference.items()]
    rest, other_rest = (max(_TINY, 1 - math.fsum(map(math.exp, side))) for side in zip(*pairs, strict=True))
    shared = math.fsum(math.exp(score) * (score - other_score) for score, other_score in pairs)
    return max(0.0, shared + rest * math.log(rest / other_rest))


def most_probable(scores: Scores) -> int:
    """Return the most probable token; of equal ones the lowest id."""
    return min(scores, key=lambda token: (-scores[token], token))


def preference(scores: Scores, token: int) -> float:
    """Return by how many nats the most probable token is preferred to another one; infinite if that is not given."""
    return max(scores.values()) - scores[token] if token in scores else math.inf
