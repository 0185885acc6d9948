"""Score a given answer by the greedy answers of an engine that has no route for scoring."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from tunesmith.core.errors import TunesmithError
from tunesmith.engines.base import Ids

Step: TypeAlias = tuple[int, Mapping[int, float] | None]
"""A token that the engine chose, and the log-probabilities at it; None if the engine left them out."""


def score_by_answers(
    prompt: Ids, answer: Ids, steps: Callable[[list[int], int], Sequence[Step]]
) -> list[Mapping[int, float] | None]:
    """Return the log-probabilities at each token of an answer.

    The log-probabilities at each step of a greedy answer are those after the tokens before it, so it scores the given
    answer up to and including the first token at which the two differ. From there on, another one is needed.

    Args:
        steps: returns the greedy answer to a prompt, of at most a number of tokens and with the one that ends it.
    """
    scores: list[Mapping[int, float] | None] = []
    while len(scores) < len(answer):
        done = len(scores)
        for (chosen, likely), token in zip(
            steps([*prompt, *answer[:done]], len(answer) - done), answer[done:], strict=False
        ):
            scores.append(likely)
            if chosen != token:
                break
        if len(scores) == done:
            raise TunesmithError("the engine gave no token", code="server-failed")
    return scores
