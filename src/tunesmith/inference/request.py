"""One prompt and its unfinished answer, both in slots and in padded batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunesmith.inference.sampling import GREEDY, Sampler, Sampling, require

# Tokens before a stop string that are decoded with it: a character may be cut where they begin.
_LEAD_TOKENS = 8


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Texts after which an answer is over, however they are cut into tokens. The answer ends before them.

    Args:
        texts: the stop strings.
        decode: returns the text of ids.
    """

    texts: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def end(self, ids: Sequence[int]) -> bool:
        """Return whether an answer that had no stop string before its last token has one now."""
        # A token writes at least one byte, so a stop string that ends in the last one begins among these.
        longest = max((len(text.encode()) for text in self.texts), default=0)
        tail = self.decode(ids[-longest - _LEAD_TOKENS :])
        return any(text in tail for text in self.texts)

    def cut(self, text: str) -> str:
        """Return the text before the first stop string."""
        return text[: min((at for stop in self.texts if (at := text.find(stop)) >= 0), default=len(text))]


@dataclass(frozen=True, slots=True)
class Limits:
    """When an answer is over.

    Args:
        max_new_tokens: the most tokens it may have.
        stop_ids: ids after which it is over; they are no part of it.
        stop_strings: texts after which it is over; the ids of the answer hold them, and its text does not.

    Raises:
        RecipeError: an answer may have no token.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    stop_strings: StopStrings | None = None

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "the limit of new tokens", self.max_new_tokens, "1 or more")


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated ids without the stop token; `stopped` is false if the limit ended the answer.

    `index` is the prompt's place, or the id of the request. `error` is the reason if there are no ids.
    """

    index: int
    ids: tuple[int, ...]
    stopped: bool
    error: str | None = None


class Request:
    """A prompt and its answer so far.

    Args:
        index: names the answer.
        decoder_start_ids: ids that the decoder of an encoder-decoder model continues instead of the prompt.
    """

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        limits: Limits,
        sampling: Sampling = GREEDY,
        decoder_start_ids: Sequence[int] = (),
    ) -> None:
        self.index, self.prompt = index, prompt
        self._limits = limits
        self._ids: list[int] = []
        self._seen = {*(decoder_start_ids or prompt)}
        self._sampler = None if sampling.is_argmax else Sampler(sampling, prompt)

    def choose(self, logits: torch.Tensor, likeliest: int) -> int:
        """Return the next token, given the logits [vocabulary] and the likeliest token by them."""
        return self._sampler.choose(logits, self._seen) if self._sampler else likeliest

    def ends_with(self, token: int) -> bool:
        """Whether a token ends the answer and is no part of it."""
        return token in self._limits.stop_ids

    def take(self, token: int) -> Answer | None:
        """Append a token; return the answer if it is over."""
        stopped = self.ends_with(token)
        if not stopped:
            self._ids.append(token)
            self._seen.add(token)
            strings = self._limits.stop_strings
            stopped = strings is not None and strings.end(self._ids)
        if stopped or len(self._ids) == self._limits.max_new_tokens:
            return Answer(self.index, tuple(self._ids), stopped)
        return None


def advance(rows: Sequence[Request], logits: torch.Tensor) -> tuple[list[int], list[Answer | None]]:
    """Append a token to each row, by logits [rows, vocabulary].

    Returns:
        The tokens, and for each row its answer if that is complete, else None.
    """
    likeliest = logits.argmax(-1).tolist()
    tokens = [row.choose(logits[place], likeliest[place]) for place, row in enumerate(rows)]
    return tokens, [row.take(token) for row, token in zip(rows, tokens, strict=True)]
