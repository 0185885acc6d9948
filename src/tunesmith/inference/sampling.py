"""Choose the next token of an answer: the likeliest one, or one drawn from a filtered distribution.

Each row is filtered and drawn by itself, with a generator of its own, so answers never depend on other rows of a batch.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from random import Random, SystemRandom

import torch

from tunesmith.core.errors import NonFinite, RecipeError

# How many of the likeliest tokens are sorted for top-p, until they are enough; sorting a whole vocabulary takes longer
# than the rest of sampling together.
_SORTED = (128, 1024)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of an answer are chosen. The default is greedy: the likeliest token, always.

    Filters apply in the order of these fields after the repetition penalty, which comes first, as in transformers.

    Args:
        temperature: divides the logits; 0 is greedy.
        top_k: keep this many of the likeliest tokens.
        top_p: keep the fewest likeliest tokens whose probabilities sum up to this.
        min_p: keep tokens at least this share as likely as the likeliest one.
        repetition_penalty: divides positive logits of tokens that the prompt or the answer holds, and multiplies
            negative ones; 1 is none.
        seed: makes the answer repeatable; None draws another one each time.

    Raises:
        RecipeError: a value is out of range, or has no effect without a temperature.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or more")
        require(self.top_k is None or self.top_k >= 1, "top-k", self.top_k, "1 or more")
        require(self.top_p is None or 0 < self.top_p <= 1, "top-p", self.top_p, "above 0 and at most 1")
        require(self.min_p is None or 0 <= self.min_p <= 1, "min-p", self.min_p, "from 0 to 1")
        penalty = self.repetition_penalty
        require(0 < penalty < math.inf, "repetition penalty", penalty, "above 0; 1 is no penalty")
        require(self.seed is None or self.seed >= 0, "seed", self.seed, "0 or more")
        given = {"top-k": self.top_k, "top-p": self.top_p, "min-p": self.min_p, "seed": self.seed}
        if unused := [name for name, value in given.items() if value is not None]:
            _require_temperature(self, " and ".join(unused))

    @property
    def is_argmax(self) -> bool:
        """Whether the token is the likeliest by the model's own logits."""
        return not self.temperature and self.repetition_penalty == 1


class Sampler:
    """Chooses the tokens of one answer.

    The generator is seeded with the prompt too: rows that share a seed do not share their random numbers, and a row
    draws the same ones in any batch and in any process.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self._random = Random() if sampling.seed is None else Random(repr((sampling.seed, *map(int, prompt))))

    def choose(self, logits: torch.Tensor, seen: Collection[int]) -> int:
        """Return the next token by the logits [vocabulary] of one row.

        Args:
            seen: the tokens that the repetition penalty applies to.

        Raises:
            NonFinite: there is no distribution to draw from, because the logits hold NaN.
        """
        scores = filter_logits(logits, self.sampling, seen)
        return draw(scores, self._random.random()) if self.sampling.temperature else int(scores.argmax())


def filter_logits(logits: torch.Tensor, sampling: Sampling, seen: Collection[int] = ()) -> torch.Tensor:
    """Return the logits [vocabulary] to choose from, in fp64 and up to a constant; -inf is a token that was removed."""
    scores = logits.to(torch.float64, copy=True)
    if sampling.repetition_penalty != 1 and seen:
        places = torch.tensor(sorted(set(seen)), device=scores.device)
        penalized, penalty = scores[places], sampling.repetition_penalty
        scores[places] = torch.where(penalized < 0, penalized * penalty, penalized / penalty)
    if not sampling.temperature:
        return scores
    # The constant keeps small temperatures finite: the highest score is 0.
    scores = (scores - scores.max()) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(scores):
        scores[scores < scores.topk(sampling.top_k).values[-1]] = -math.inf
    if sampling.top_p is not None and sampling.top_p < 1:
        scores = _nucleus(scores, sampling.top_p)
    if sampling.min_p:
        scores[scores < math.log(sampling.min_p)] = -math.inf
    return scores


def _nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum up to `top_p`."""
    probabilities = scores.softmax(0)
    for count in (*_SORTED, len(scores)):
        best = probabilities.topk(min(count, len(scores)))
        before = best.values.cumsum(0) - best.values
        if before[-1] >= top_p:
            break
    kept = best.indices[before < top_p]
    return torch.full_like(scores, -math.inf).index_copy(0, kept, scores[kept])


def draw(scores: torch.Tensor, point: float) -> int:
    """Return the token at a point, from 0 to below 1, of the distribution softmax(scores [vocabulary]).

    Raises:
        NonFinite: no score is a number above -inf.
    """
    kept = (scores > -math.inf).nonzero()[:, 0]
    if not len(kept):
        raise NonFinite(
            "the model's logits are NaN or infinite, so no token can be drawn",
            hint="its weights are damaged, or it needs a higher precision",
        )
    cumulative = scores[kept].softmax(0).cumsum(0)
    place = torch.searchsorted(cumulative, point * cumulative[-1], right=True)
    return int(kept[place.clamp(max=len(kept) - 1)])


def seed_samples(sampling: Sampling, count: int) -> list[Sampling]:
    """Return how each of several answers to one question is drawn: with seeds that follow each other."""
    if count == 1:
        return [sampling]
    first = SystemRandom().getrandbits(32) if sampling.seed is None else sampling.seed
    return [replace(sampling, seed=first + i) for i in range(count)]


def refuse_contradictions(
    sampling: Sampling,
    *,
    samples: int = 1,
    beams: int = 1,
    stop: Sequence[str] = (),
    max_new_tokens: int | None = None,
) -> None:
    """Raise RecipeError for settings of an answer that are out of range or contradict each other."""
    require(samples >= 1, "the number of samples", samples, "1 or more")
    require(beams >= 1, "the number of beams", beams, "1 (no beam search) or more")
    require(max_new_tokens is None or max_new_tokens >= 1, "the limit of new tokens", max_new_tokens, "1 or more")
    require("" not in stop, "a stop string", "empty", "any other text")
    if samples > 1:
        _require_temperature(sampling, "asking for several samples")
    if beams > 1 and (sampling != GREEDY or stop):
        raise RecipeError(
            "a beam search takes no sampling, repetition penalty or stop strings",
            code="usage",
            hint="leave them out, or leave out the beams",
        )


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise RecipeError unless a setting's value is allowed."""
    if not holds:
        raise RecipeError(f"{name} is {value}", code="usage", hint=f"{name} may be {allowed}")


def _require_temperature(sampling: Sampling, setting: str) -> None:
    if not sampling.temperature:
        raise RecipeError(
            f"{setting} has no effect without a temperature",
            code="usage",
            hint="greedy answers are all alike; set a temperature, such as 1",
        )


GREEDY = Sampling()
