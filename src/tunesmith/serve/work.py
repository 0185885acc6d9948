"""The requests of the server to its worker, and the events that the worker answers with. Nothing here needs torch."""

from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.core.errors import TunesmithError
from tunesmith.inference.adjustment import NO_ADJUSTMENT, Adjustment
from tunesmith.inference.request import Answer, Limits, Token
from tunesmith.inference.sampling import GREEDY, Sampling


class QueueFull(TunesmithError):
    """The queue of requests is full."""

    code = "queue-full"


class DeadlineExceeded(TunesmithError):
    """A request was not answered in its time."""

    code = "deadline-exceeded"


class Stopping(TunesmithError):
    """The worker stops, and takes no new requests."""

    code = "stopping"


@dataclass(frozen=True, slots=True)
class Work:
    """One request.

    Args:
        model: one of the worker's models.
        prompt: the ids of the prompt.
        limits: the conditions that end the answer.
        sampling: how its tokens are chosen. Several samples are several requests with different seeds.
        adjustment: penalties and fixed additions to the logits.
        decoder_prefix_ids: for an encoder-decoder model, the ids that the decoder starts with.
        top_scores: the number of likeliest tokens that each `Token` comes with, 0 for only its own log-probability;
            None: no log-probabilities.
        score_prompt: whether the tokens of the prompt are scored as well (`PromptScored`).
        timeout_s: the time in which the answer must be complete, including the time in the queue; None: no limit.
    """

    model: str
    prompt: tuple[int, ...]
    limits: Limits
    sampling: Sampling = GREEDY
    adjustment: Adjustment = NO_ADJUSTMENT
    decoder_prefix_ids: tuple[int, ...] = ()
    top_scores: int | None = None
    score_prompt: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The tokens of the prompt with their log-probabilities; the first one has none. Comes before the first token."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete. No event follows."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed; tokens may have been sent before. No event follows."""

    error: TunesmithError


# A token of the answer. Stop tokens are not part of an answer, so they have no event.
Event = Token | PromptScored | Done | Failed
OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Capacity:
    """The memory of a worker, chosen when it starts.

    Attributes:
        slots: the number of requests that are answered at the same time.
        slot_tokens: the maximum number of tokens of a prompt with its answer.
        cache_bytes: the memory of the keys and values of all slots.
        prefix_bytes: the memory of beginnings of earlier prompts.
        one_at_a_time: the reason why only one request is answered at a time; None if several are.
    """

    slots: int
    slot_tokens: int
    cache_bytes: int
    prefix_bytes: int
    one_at_a_time: str | None = None


@dataclass(slots=True)
class Stats:
    """The state of a worker and its counts since it started.

    Attributes:
        running: requests that are being answered.
        waiting: requests in the queue.
        slots: the number of slots, which an error may reduce for a while.
        answered: complete answers.
        failed: requests that failed, those after their deadline included.
        cancelled: requests that were cancelled.
        prompt_tokens: tokens of the prompts of all accepted requests.
        new_tokens: tokens of answers.
        retries: passes that failed and were repeated with fewer requests.
        prefix_hits: prompts of which a beginning was known.
        prefix_misses: the other prompts.
        prefix_hit_tokens: tokens of prompts that were not read again.
        prefix_bytes: the memory of known beginnings.
    """

    running: int = 0
    waiting: int = 0
    slots: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    retries: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    prefix_hit_tokens: int = 0
    prefix_bytes: int = 0
