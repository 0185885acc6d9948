"""A prompt with its unfinished answer, in slots and in padded batches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.inference.adjustment import NO_ADJUSTMENT, Adjustment
from tunesmith.inference.sampling import GREEDY, Sampling, draw, filter_logits, require_option

if TYPE_CHECKING:  # `plan` needs the records only, and does not import torch
    import torch

Ids = Sequence[int]
# Tokens that are decoded before a stop string: the first of them may begin in the middle of a character.
_LEAD_TOKENS = 8
_NO_DISTRIBUTION = "the model's logits are NaN or infinite, so no token can be chosen"


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Texts that end an answer, however they are divided into tokens. The answer's text ends before them.

    Args:
        texts: the stop strings.
        decode: returns the text of ids.
    """

    texts: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def completed_by_last(self, ids: Sequence[int]) -> bool:
        """Whether an answer without a stop string before its last token has one now."""
        # A token has at least one byte, so a stop string that ends in the last token begins in these tokens.
        longest = max((len(text.encode()) for text in self.texts), default=0)
        tail = self.decode(ids[-longest - _LEAD_TOKENS :])
        return any(text in tail for text in self.texts)

    def cut(self, text: str) -> str:
        """Return the text before the first stop string."""
        return text[: min((start for stop in self.texts if (start := text.find(stop)) >= 0), default=len(text))]


@dataclass(frozen=True, slots=True)
class Limits:
    """The conditions that end an answer.

    Args:
        max_new_tokens: the maximum number of tokens.
        stop_ids: ids that end it; they are not part of it.
        stop_strings: texts that end it; the ids of the answer include them, and its text does not.

    Raises:
        RecipeError: `max_new_tokens` is below 1.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    stop_strings: StopStrings | None = None

    def __post_init__(self) -> None:
        require_option(self.max_new_tokens >= 1, "max-new-tokens", self.max_new_tokens, "1 or more")


@dataclass(frozen=True, slots=True)
class Answer:
    """The generated ids, without the stop id; `stopped` is false if the limit ended the answer.

    `index` is the index of the prompt, or the id of the request. `error` says why an answer has no ids.
    """

    index: int
    ids: tuple[int, ...]
    stopped: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer or a prompt.

    Attributes:
        log_probability: under the unfiltered distribution, that is before temperature, filters and penalties; None if
            it was not requested, and for the first token of a prompt.
        top: the likeliest tokens at this place with their log-probabilities, likeliest first.
    """

    id: int
    log_probability: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Request:
    """A prompt and its answer so far.

    Args:
        index: the `index` of the answer.
        decoder_prefix_ids: for an encoder-decoder model, the ids that the decoder starts with; the prompt is then the
            encoder's input.
        adapter: the adapter that answers; None: the model itself.
        adjustment: changes of the logits before sampling.
        top_scores: the number of likeliest tokens in each `Token`; None: without log-probabilities.
        score_prompt: whether the tokens of the prompt get log-probabilities as well.
    """

    def __init__(
        self,
        index: int,
        prompt: Ids,
        limits: Limits,
        sampling: Sampling = GREEDY,
        decoder_prefix_ids: Ids = (),
        *,
        adapter: str | None = None,
        adjustment: Adjustment = NO_ADJUSTMENT,
        top_scores: int | None = None,
        score_prompt: bool = False,
    ) -> None:
        self.index, self.prompt, self.limits, self.decoder_prefix_ids = index, prompt, limits, decoder_prefix_ids
        self.adapter, self.top_scores, self._score_prompt = adapter, top_scores, score_prompt
        self.prompt_scores: Sequence[Token] | None = None
        self._ids: list[int] = []
        self._seen = {*(decoder_prefix_ids or prompt)}
        self._sampling, self._random, self._adjustment = sampling, sampling.generator(prompt), adjustment

    @property
    def ids(self) -> Ids:
        """The ids of the answer so far."""
        return self._ids

    @property
    def needs_prompt_scores(self) -> bool:
        """Whether the prompt has to be read for its log-probabilities."""
        return self._score_prompt and self.prompt_scores is None

    @property
    def tokens(self) -> Ids:
        """The ids that a decoder-only model has read when it chooses the next one: the prompt and the answer so far."""
        return [*self.prompt, *self._ids]

    def choose(self, logits: "torch.Tensor", likeliest: int) -> int:
        """Return the next token, given the logits [vocabulary] and their argmax.

        Raises:
            NonFinite: the logits are NaN or infinite, so there is no distribution to sample from.
        """
        if self._sampling.is_argmax and self._adjustment == NO_ADJUSTMENT:
            return likeliest
        scores = filter_logits(self._adjustment.apply(logits, self._ids), self._sampling, self._seen)
        return draw(scores, self._random.random()) if self._sampling.temperature else int(scores.argmax())

    def ends_with(self, token: int) -> bool:
        """Whether a token ends the answer without being part of it."""
        return token in self.limits.stop_ids

    def append(self, token: int) -> Answer | None:
        """Append a token; return the answer if it is complete."""
        stopped = self.ends_with(token)
        if not stopped:
            self._ids.append(token)
            self._seen.add(token)
            strings = self.limits.stop_strings
            stopped = strings is not None and strings.completed_by_last(self._ids)
        if stopped or len(self._ids) == self.limits.max_new_tokens:
            return Answer(self.index, tuple(self._ids), stopped)
        return None


def advance(rows: Sequence[Request], logits: "torch.Tensor") -> tuple[list[Token], list[Answer | None]]:
    """Choose and append one token for each row, given the logits [rows, vocabulary].

    Returns:
        The tokens, and for each row its answer if it is complete, else None. The answer to logits that are NaN or
        infinite has an error.
    """
    best = logits.argmax(-1, keepdim=True)
    highest, likeliest = logits.gather(-1, best)[:, 0].tolist(), best[:, 0].tolist()
    problems = [None if math.isfinite(value) else _NO_DISTRIBUTION for value in highest]  # NaN counts as the highest
    # All tokens are chosen before any is appended, so that running out of memory here changes no row.
    ids = [
        likeliest[place] if problems[place] else row.choose(logits[place], likeliest[place])
        for place, row in enumerate(rows)
    ]
    tokens = score_tokens(logits, ids, [row.top_scores for row in rows])
    answers = [
        Answer(row.index, (), stopped=False, error=problem) if problem else row.append(token)
        for row, token, problem in zip(rows, ids, problems, strict=True)
    ]
    return tokens, answers


def score_tokens(logits: "torch.Tensor", ids: Ids, counts: Sequence[int | None]) -> list[Token]:
    """Return tokens with their log-probabilities, given logits [tokens, vocabulary].

    Args:
        counts: for each token the number of likeliest ones; None: without log-probabilities.
    """
    tokens = []
    for place, (token, count) in enumerate(zip(ids, counts, strict=True)):
        if count is None:
            tokens.append(Token(token))
            continue
        scores = logits[place].float().log_softmax(-1)
        best = scores.topk(min(count, len(scores)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        tokens.append(Token(token, float(scores[token]), top))
    return tokens
