"""Choose the next token of an answer: the most likely one, or one drawn from a filtered distribution.

Each row is filtered and sampled separately and has its own random generator, so an answer never depends on the other
rows of a batch.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from random import Random, SystemRandom
from typing import TYPE_CHECKING

from tunesmith.core.errors import NonFinite, RecipeError
from tunesmith.core.files import digest_of

if TYPE_CHECKING:  # `plan` needs the record only, and does not import torch
    import torch

# The numbers of most likely tokens that top-p sorts, one after the other until they suffice. Sorting a whole vocabulary
# takes longer than the rest of sampling together.
_TOP_P_SORTED = (128, 1024)
_SEED_DIGITS = 16  # hexadecimal digits of a digest that become a seed


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of an answer are chosen. The default is greedy: always the most likely token.

    The repetition penalty applies first, and then the filters in the order of the fields, as in transformers.

    Args:
        temperature: divides the logits; 0 is greedy.
        top_k: keep this number of most likely tokens.
        top_p: keep the smallest set of most likely tokens whose probabilities sum to at least this value.
        min_p: keep tokens whose probability is at least this share of the highest one.
        repetition_penalty: divides the positive logits and multiplies the negative logits of tokens that occur in the
            prompt or the answer; 1 is no penalty.
        seed: makes the answer repeatable; without it every answer is a different sample.

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
        require_option(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or more")
        require_option(self.top_k is None or self.top_k >= 1, "top-k", self.top_k, "1 or more")
        require_option(self.top_p is None or 0 < self.top_p <= 1, "top-p", self.top_p, "above 0 and at most 1")
        require_option(self.min_p is None or 0 <= self.min_p <= 1, "min-p", self.min_p, "from 0 to 1")
        penalty = self.repetition_penalty
        require_option(0 < penalty < math.inf, "repetition penalty", penalty, "above 0; 1 is no penalty")
        require_option(self.seed is None or self.seed >= 0, "seed", self.seed, "0 or more")
        given = {"top-k": self.top_k, "top-p": self.top_p, "min-p": self.min_p, "seed": self.seed}
        if unused := [name for name, value in given.items() if value is not None]:
            _require_temperature(self, " and ".join(unused))

    @property
    def is_argmax(self) -> bool:
        """Whether each token is the argmax of the model's unchanged logits."""
        return not self.temperature and self.repetition_penalty == 1

    def generator(self, prompt: Sequence[int]) -> Random:
        """Return the random generator for the answer to a prompt.

        It is seeded with the seed and the prompt: rows with the same seed have different random numbers, and a row has
        the same ones in every batch and every process.
        """
        return Random() if self.seed is None else Random(repr((self.seed, *map(int, prompt))))

    def of_answer(self, row: str, sample: int) -> "Sampling":
        """Return the sampling of one answer to a row of an evaluation.

        The answer's seed follows from this seed, the id of the row and the number of the sample, and from nothing else:
        so the answer is the same alone, among other rows, on any number of processes, and after a resume.
        """
        if self.seed is None:
            return self
        return replace(self, seed=int(digest_of([self.seed, row, sample])[:_SEED_DIGITS], 16))


def filter_logits(logits: "torch.Tensor", sampling: Sampling, seen: Collection[int] = ()) -> "torch.Tensor":
    """Return the filtered logits [vocabulary] in fp64, up to a constant; removed tokens have -inf.

    Args:
        seen: tokens that the repetition penalty applies to.
    """
    import torch

    scores = logits.to(torch.float64, copy=True)
    if sampling.repetition_penalty != 1 and seen:
        places = torch.tensor(sorted(set(seen)), device=scores.device)
        penalized, penalty = scores[places], sampling.repetition_penalty
        scores[places] = torch.where(penalized < 0, penalized * penalty, penalized / penalty)
    if not sampling.temperature:
        return scores
    # Subtract the maximum, so that small temperatures do not overflow.
    scores = (scores - scores.max()) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(scores):
        scores[scores < scores.topk(sampling.top_k).values[-1]] = -math.inf
    if sampling.top_p is not None and sampling.top_p < 1:
        scores = _nucleus(scores, sampling.top_p)
    if sampling.min_p:
        scores[scores < math.log(sampling.min_p)] = -math.inf
    return scores


def _nucleus(scores: "torch.Tensor", top_p: float) -> "torch.Tensor":
    """Keep only the smallest set of most likely tokens whose probabilities sum to at least `top_p`."""
    import torch

    probabilities = scores.softmax(0)
    for count in (*_TOP_P_SORTED, len(scores)):
        best = probabilities.topk(min(count, len(scores)))
        before = best.values.cumsum(0) - best.values
        if before[-1] >= top_p:
            break
    kept = best.indices[before < top_p]
    return torch.full_like(scores, -math.inf).index_copy(0, kept, scores[kept])


def draw(scores: "torch.Tensor", point: float) -> int:
    """Return the token at a point of the cumulative distribution of softmax(scores [vocabulary]).

    Args:
        point: a number from 0 to below 1.

    Raises:
        NonFinite: no score is a number above -inf.
    """
    import torch

    kept = (scores > -math.inf).nonzero()[:, 0]
    if not len(kept):
        hint = "set a higher model.precision, or check the weights of the model"
        raise NonFinite("the model's logits are NaN or infinite, so no token can be sampled", hint=hint)
    cumulative = scores[kept].softmax(0).cumsum(0)
    place = torch.searchsorted(cumulative, point * cumulative[-1], right=True)
    return int(kept[place.clamp(max=len(kept) - 1)])


def seed_samples(sampling: Sampling, count: int) -> list[Sampling]:
    """Return the sampling of `count` answers to one prompt, with consecutive seeds."""
    if count == 1:
        return [sampling]
    first = SystemRandom().getrandbits(32) if sampling.seed is None else sampling.seed
    return [replace(sampling, seed=first + i) for i in range(count)]


def check_generation_options(
    sampling: Sampling, *, samples: int = 1, beams: int = 1, stop: Sequence[str] = (), max_new_tokens: int | None = None
) -> None:
    """Raise RecipeError if an option is out of range, has no effect, or contradicts another one."""
    require_option(samples >= 1, "samples", samples, "1 or more")
    require_option(beams >= 1, "beams", beams, "1 (no beam search) or more")
    require_option(max_new_tokens is None or max_new_tokens >= 1, "max-new-tokens", max_new_tokens, "1 or more")
    require_option("" not in stop, "a stop string", "empty", "any other text")
    if samples > 1:
        _require_temperature(sampling, "samples")
    if beams > 1 and (sampling != GREEDY or stop):
        message = "beam search cannot be combined with sampling, a repetition penalty or stop strings"
        raise RecipeError(message, code="wrong-sampling", hint="remove them, or remove the beams")


def require_option(is_allowed: bool, name: str, value: object, allowed: str) -> None:
    """Raise RecipeError unless the value of an option is allowed."""
    if not is_allowed:
        raise RecipeError(f"{name} is {value}", code="wrong-sampling", hint=f"{name} can be {allowed}")


def _require_temperature(sampling: Sampling, options: str) -> None:
    if not sampling.temperature:
        hint = "greedy answers are all equal; set a temperature, such as 1"
        raise RecipeError(f"{options}: no effect without a temperature", code="wrong-sampling", hint=hint)


GREEDY = Sampling()
