"""A prompt with its unfinished answer, in slots and in padded batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.inference.sampling import Sampling, draw, filter_logits, require_option

if TYPE_CHECKING:  # `plan` needs the records only, and does not import torch
    import torch

Ids = Sequence[int]
# Tokens that are decoded before a stop string: the first of them may begin in the middle of a character.
_LEAD_TOKENS = 8


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


class Request:
    """A prompt and its answer so far.

    Args:
        index: the `index` of the answer.
        decoder_prefix_ids: for an encoder-decoder model, the ids that the decoder starts with; the prompt is then the
            encoder's input.
    """

    def __init__(
        self, index: int, prompt: Ids, limits: Limits, sampling: Sampling, decoder_prefix_ids: Ids = ()
    ) -> None:
        self.index, self.prompt, self.limits, self.decoder_prefix_ids = index, prompt, limits, decoder_prefix_ids
        self._ids: list[int] = []
        self._seen = {*(decoder_prefix_ids or prompt)}
        self._sampling, self._random = sampling, sampling.generator(prompt)

    def choose(self, logits: "torch.Tensor", likeliest: int) -> int:
        """Return the next token, given the logits [vocabulary] and their argmax.

        Raises:
            NonFinite: the logits contain NaN, so there is no distribution to sample from.
        """
        if self._sampling.is_argmax:
            return likeliest
        scores = filter_logits(logits, self._sampling, self._seen)
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


def advance(rows: Sequence[Request], logits: "torch.Tensor") -> tuple[list[int], list[Answer | None]]:
    """Choose and append one token for each row, given the logits [rows, vocabulary].

    Returns:
        The tokens, and for each row its answer if it is complete, else None.
    """
    likeliest = logits.argmax(-1).tolist()
    tokens = [row.choose(logits[place], likeliest[place]) for place, row in enumerate(rows)]
    return tokens, [row.append(token) for row, token in zip(rows, tokens, strict=True)]
