"""A server of which only OpenAI's chat completions are known: it answers conversations, and nothing else."""

from collections.abc import Mapping
from typing import Any

from tunesmith.core.json_server import JsonServer
from tunesmith.engines.base import EngineAnswer, Ids, Messages
from tunesmith.inference.endpoint import ask_chat


class OpenAiApi:
    """A model of a server.

    Args:
        server: the URL that ends with /v1.
        model: the name under which the server has the model.
        name: the program.
    """

    def __init__(self, server: JsonServer, model: str, name: str = "OpenAI-compatible server") -> None:
        self.name, self._server, self._model = name, server, model

    def encode(self, text: str, *, add_special: bool = False) -> list[int] | None:
        """Return None: the protocol has no token ids."""
        return None

    def encode_chat(self, messages: Messages) -> list[int] | None:
        """Return None: the protocol has no token ids."""
        return None

    def token_scores(self, prompt: Ids, answer: Ids, top: int) -> list[Mapping[int, float]] | None:
        """Return None: the protocol has no token ids."""
        return None

    def answer(self, prompt: Ids, *, max_new_tokens: int) -> EngineAnswer | None:
        """Return None: the protocol has no token ids."""
        return None

    def answer_chat(self, messages: Messages, *, max_new_tokens: int) -> EngineAnswer | None:
        """Return the greedy chat completion."""
        return greedy_chat(self._server, self._model, messages, max_new_tokens=max_new_tokens)

    def close(self) -> None:
        """Do nothing: the server is another program's."""


def greedy_chat(
    server: JsonServer, model: str, messages: Messages, *, max_new_tokens: int, **options: Any
) -> EngineAnswer:
    """Return the greedy chat completion of a server.

    Args:
        server: the URL that ends with /v1.
        options: other fields of the request.
    """
    answer = ask_chat(server, model, messages, max_tokens=max_new_tokens, temperature=0.0, **options)
    return EngineAnswer(answer.text, None, answer.stopped, answer.error)
