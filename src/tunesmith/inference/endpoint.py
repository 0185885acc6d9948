"""Ask a model behind an OpenAI-compatible endpoint, such as `https://host/v1#model`, by its chat completions.

Protocol: https://platform.openai.com/docs/api-reference/chat/create
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.json_server import JsonServer, RequestRefused

_REFERENCE = re.compile(r"(https?://[^#]+?)/*#(.+)")
_BAD_REQUEST = (400, 413, 422)  # such as a prompt beyond the model's context length
_MESSAGE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class EndpointAnswer:
    """An answer; `stopped` is false if the limit of tokens ended it, and `error` says why there is none."""

    text: str
    stopped: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model behind an endpoint. The key is in the environment variable OPENAI_API_KEY, if it needs one."""

    url: str
    model: str

    @classmethod
    def parse(cls, reference: str) -> "Endpoint | None":
        """Return the endpoint of a reference `URL#MODEL`; None for a reference of another kind.

        Raises:
            RecipeError: the URL names no model.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None and reference.startswith(("http://", "https://")):
            hint = f"write {reference.rstrip('#')}#MODEL, with the name by which the server knows it"
            raise RecipeError("names no model", where=reference, code="unknown-model", hint=hint)
        return cls(match[1], match[2]) if match else None

    def ask(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> EndpointAnswer:
        """Return the answer to a conversation. A busy server is asked again.

        Args:
            options: other fields of the request, such as `max_tokens`.

        Raises:
            RecipeError: the server cannot be reached, refuses the key or has no such model.
            TunesmithError: the server fails.
        """
        server = JsonServer(self.url, key=os.environ.get("OPENAI_API_KEY"))
        return ask_chat(server, self.model, messages, **options)

    def __str__(self) -> str:
        return f"{self.url}#{self.model}"


def ask_chat(server: JsonServer, model: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> EndpointAnswer:
    """Return the answer of a model to a conversation; errors are those of `Endpoint.ask`."""
    body = {"model": model, "messages": list(messages), **options}
    try:
        response = server.post("/chat/completions", body)
    except RequestRefused as error:
        if error.status in _BAD_REQUEST:
            return EndpointAnswer("", False, error.message)
        hint = "check the URL and the name of the model; finished answers are kept"
        where = f"{server.url}#{model}"
        raise RecipeError(f"is not served: {error.message}", where=where, hint=hint, code="unknown-model") from error
    try:
        choice = response["choices"][0]
        return EndpointAnswer(str(choice["message"]["content"] or ""), choice.get("finish_reason") != "length")
    except (LookupError, TypeError, AttributeError) as error:
        message = f"answers something else than a chat completion: {str(response)[:_MESSAGE_CHARACTERS]}"
        hint = "check the URL; it usually ends with /v1"
        raise TunesmithError(message, where=server.url, hint=hint, code="server-failed") from error
