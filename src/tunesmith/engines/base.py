"""The questions that a proof asks of an engine: a program, other than our own inference, that runs a model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Ids = Sequence[int]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """A greedy answer.

    Attributes:
        text: the answer without the tokens that end it.
        ids: its tokens without those that end it; None if the engine gives only text.
        stopped: false if the limit of new tokens ended it.
        error: why there is no answer, such as a prompt beyond the context length.
    """

    text: str
    ids: tuple[int, ...] | None
    stopped: bool
    error: str | None = None


class Engine(Protocol):
    """A running engine with one model. A method returns None if the engine offers no way to do what it asks.

    Every method raises TunesmithError if the engine cannot be asked, for example because its process has exited.
    All but `close` may be called from several threads.
    """

    @property
    def name(self) -> str:
        """The program and its version: "llama.cpp b11549", "vLLM 0.32.0", "transformers 5.23.0"."""
        ...

    def encode(self, text: str, *, add_special: bool = False) -> list[int] | None:
        """Return the ids of a text; text that spells a control token may become that token.

        Args:
            add_special: add the control tokens that a text prompt gets, such as one at its beginning.
        """
        ...

    def encode_chat(self, messages: Messages) -> list[int] | None:
        """Return the ids of the prompt for a conversation, up to where the assistant's answer begins."""
        ...

    def token_scores(self, prompt: Ids, answer: Ids, top: int) -> list[Mapping[int, float]] | None:
        """Return the log-probabilities (natural logarithm) at each token of an answer, given all tokens before it.

        Each has the `top` most probable tokens and the answer's own token, if the engine gives it.
        """
        ...

    def answer(self, prompt: Ids, *, max_new_tokens: int) -> EngineAnswer | None:
        """Return the greedy answer to a prompt's ids."""
        ...

    def answer_chat(self, messages: Messages, *, max_new_tokens: int) -> EngineAnswer | None:
        """Return the greedy answer to a conversation, as a client of the engine would get it."""
        ...

    def close(self) -> None:
        """Free the model; end the process if this object started it."""
        ...


@runtime_checkable
class BatchEngine(Protocol):
    """An engine in this process, which answers several prompts in one pass faster than one by one."""

    def answers(self, prompts: Sequence[Ids], *, max_new_tokens: int) -> Iterator[tuple[int, EngineAnswer]]:
        """Yield (place of the prompt, greedy answer) as answers finish."""
        ...
