"""The requests of the server to its worker, and the events that the worker answers with. Nothing here needs torch."""

from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.core.errors import TunesmithError
from tunesmith.inference.request import Answer, Limits
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
        sampling: how its tokens are chosen.
        timeout_s: the time in which the answer must be complete, including the time in the queue; None: no limit.
    """

    model: str
    prompt: tuple[int, ...]
    limits: Limits
    sampling: Sampling = GREEDY
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A new token of the answer. Stop tokens are not part of an answer, so they have no event."""

    id: int


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete. No event follows."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed; tokens may have been sent before. No event follows."""

    error: TunesmithError


Event = Token | Done | Failed
OnEvent = Callable[[Event], None]
