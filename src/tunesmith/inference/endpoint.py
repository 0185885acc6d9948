"""Ask a model behind an OpenAI-compatible endpoint, such as `https://host/v1#model`, by its chat completions.

Protocol: https://platform.openai.com/docs/api-reference/chat/create
"""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError

_REFERENCE = re.compile(r"(https?://[^#]+?)/*#(.+)")
_SECONDS = 300.0  # for one answer
# Pauses between attempts, in seconds. The last one is followed by a last attempt.
_PAUSES = (1.0, 2.0, 4.0, 8.0)
_BUSY, _BAD_REQUEST = (408, 409, 429), (400, 413, 422)
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

    def ask(self, messages: Sequence[Mapping[str, str]], **options: Any) -> EndpointAnswer:
        """Return the answer to a conversation. A busy server is asked again.

        Args:
            options: other fields of the request, such as `max_tokens`.

        Raises:
            RecipeError: the server cannot be reached, refuses the key or has no such model.
        """
        body = json.dumps({"model": self.model, "messages": list(messages), **options}).encode()
        for pause in (*_PAUSES, None):
            interrupt.check()
            try:
                return _answer(self._post(body))
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read().decode(errors='replace')[:_MESSAGE_CHARACTERS]}"
                if error.code in _BAD_REQUEST:  # such as a prompt beyond the model's context length
                    return EndpointAnswer("", False, problem)
                if error.code < 500 and error.code not in _BUSY:
                    raise self._error(problem) from error
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                problem = str(getattr(error, "reason", "") or error) or type(error).__name__
            if pause is None:
                raise self._error(problem)
            time.sleep(pause)
        raise AssertionError

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            return json.load(response)

    def _error(self, problem: str) -> RecipeError:
        hint = "check the URL, the name of the model and OPENAI_API_KEY; finished answers are kept"
        return RecipeError(f"cannot be asked: {problem}", where=str(self), code="endpoint-failed", hint=hint)

    def __str__(self) -> str:
        return f"{self.url}#{self.model}"


def _answer(response: Any) -> EndpointAnswer:
    """Return the first choice; raise LookupError or TypeError if the response is not one of the protocol."""
    choice = response["choices"][0]
    return EndpointAnswer(str(choice["message"]["content"] or ""), choice.get("finish_reason") != "length")
