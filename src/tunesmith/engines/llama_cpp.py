"""llama.cpp's HTTP server, by its own routes, which take and give token ids.

Routes: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

import importlib.metadata
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError, install_hint
from tunesmith.core.json_server import JsonServer, RequestRefused
from tunesmith.engines.base import EngineAnswer, Ids, Messages
from tunesmith.engines.greedy_scores import Step, score_by_answers
from tunesmith.engines.llama_cpp_server import KEY_VARIABLE, LlamaCppOptions
from tunesmith.engines.openai_api import greedy_chat
from tunesmith.engines.server_process import ServerProcess

_SECONDS_TO_LOAD = 600.0  # a large file from a slow disk
_ADDRESS = re.compile(r"^address (http\S+)$", re.MULTILINE)
_ALL_TOKENS = 1_000_000  # more than any vocabulary; the server gives at most as many as there are


class LlamaCpp:
    """A running llama.cpp.

    Args:
        server: its root, without /v1.
        model: the name of the model in the server, which gives one model any name.
        name: the program and its version.
        process: the process of the server, which `close` ends.
    """

    def __init__(self, server: JsonServer, model: str, name: str, *, process: ServerProcess | None = None) -> None:
        self.name, self._server, self._model, self.process = name, server, model, process

    @property
    def url(self) -> str:
        """The root of the server."""
        return self._server.url

    def encode(self, text: str, *, add_special: bool = False) -> list[int] | None:
        """Return the ids of a text, as those of a text prompt if `add_special`."""
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return list(self._server.post("/tokenize", body)["tokens"])

    def encode_chat(self, messages: Messages) -> list[int] | None:
        """Return the ids of what the file's chat template renders."""
        prompt = self._server.post("/apply-template", {"messages": list(messages)}, patient=False)["prompt"]
        # As for a chat completion: the route leaves out a first token of the template that the file adds to every text.
        return self.encode(prompt, add_special=True)

    def token_scores(self, prompt: Ids, answer: Ids, top: int) -> list[Mapping[int, float]] | None:
        """Return log-probabilities by greedy answers: llama.cpp has no route that scores given tokens."""

        def steps(prompt: Ids, count: int) -> list[Step]:
            response = self._complete(prompt, count, n_probs=top)
            chosen = response["tokens"]
            return list(zip(chosen, align(chosen, response.get("completion_probabilities", ())), strict=True))

        scores: list[Mapping[int, float]] = []
        for place, step in enumerate(score_by_answers(prompt, answer, steps)):
            before, token = [*prompt, *answer[:place]], answer[place]
            likely = step or self.next_token(before, top)
            scores.append(likely if token in likely else {**likely, **self._score_of(before, token)})
        return scores

    def next_token(self, prompt: Ids, top: int = _ALL_TOKENS) -> dict[int, float]:
        """Return the log-probabilities of the `top` most probable tokens after a prompt; default all.

        The bias makes the server choose a token that is a whole character, because it gives no probabilities for
        others. The probabilities are those without the bias.
        """
        (whole, *_) = self.encode("a") or [0]
        (step,) = self._complete(prompt, 1, n_probs=top, logit_bias=[[whole, 1000.0]])["completion_probabilities"]
        return _likely(step)

    def _score_of(self, prompt: Ids, token: int) -> dict[int, float]:
        """Return the log-probability of a token that is not among the most probable."""
        every = self.next_token(prompt)
        return {token: every[token]} if token in every else {}

    def answer(self, prompt: Ids, *, max_new_tokens: int) -> EngineAnswer | None:
        """Return the greedy answer to ids."""
        try:
            response = self._complete(prompt, max_new_tokens)
        except RequestRefused as error:  # such as a prompt beyond the context of a slot
            return EngineAnswer("", None, False, error.message)
        ids, stopped = tuple(response["tokens"]), response["stop_type"] != "limit"
        if response["stop_type"] == "eos":
            ids = ids[:-1]
        return EngineAnswer(response["content"], ids, stopped)

    def answer_chat(self, messages: Messages, *, max_new_tokens: int) -> EngineAnswer | None:
        """Return the greedy chat completion."""
        server = self._server.below("/v1")
        return greedy_chat(server, self._model, messages, max_new_tokens=max_new_tokens, cache_prompt=False)

    def _complete(self, prompt: Ids, count: int, **options: Any) -> Any:
        # cache_prompt off: a cached beginning was computed in batches of another size, and differs in the last digits.
        fixed = {"n_predict": count, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
        return self._server.post("/completion", {"prompt": list(prompt), **fixed, **options})

    def close(self) -> None:
        """End the server if this object started it."""
        if self.process:
            self.process.close()


def _likely(step: Mapping[str, Any]) -> dict[int, float]:
    return {token["id"]: token["logprob"] for token in step["top_logprobs"]}


def align(chosen: Ids, steps: Sequence[Mapping[str, Any]]) -> list[dict[int, float] | None]:
    """Return the log-probabilities at each chosen token; None if the server gave none, or not certainly this one's.

    The server leaves out tokens that end within a character of several bytes, so the steps are a subsequence of the
    tokens. A step is certain if it is at the same token whether the steps are matched from the left or from the right.
    """
    first = _match(chosen, [step["id"] for step in steps])
    last = [len(chosen) - 1 - place for place in _match(chosen[::-1], [step["id"] for step in steps[::-1]])[::-1]]
    certain = {a: _likely(step) for a, b, step in zip(first, last, steps, strict=True) if a == b}
    return [certain.get(place) for place in range(len(chosen))]


def _match(chosen: Ids, ids: Ids) -> list[int]:
    """Return the first places at which a subsequence can be found."""
    places = iter(range(len(chosen)))
    return [next(place for place in places if chosen[place] == token) for token in ids]


def start_llama_cpp(file: Path, *, lora: Path | None = None, key: str | None = None, **options: Any) -> LlamaCpp:
    """Start llama.cpp with a GGUF file, in a process that ends when we do.

    Args:
        lora: an adapter as a GGUF file.
        key: the API key that the server asks for.
        options: other fields of `LlamaCppOptions`, such as `slot_tokens`.

    Raises:
        RecipeError: the wheel xllamacpp is not installed.
        TunesmithError: llama.cpp cannot load the file; the message has the end of its log.
    """
    version = llama_cpp_version()
    settings = LlamaCppOptions(str(file), str(lora) if lora else None, **options)
    command = [sys.executable, "-P", "-m", "tunesmith.engines.llama_cpp_server", settings.to_json()]
    process = ServerProcess("llama.cpp", command, environment={KEY_VARIABLE: key or ""})
    url = process.wait_until(lambda: _address(process), _SECONDS_TO_LOAD)
    return LlamaCpp(JsonServer(url, key=key, before_retry=process.check), settings.name, version, process=process)


def llama_cpp_version() -> str:
    """Return "llama.cpp b11549": the last number of the wheel's version is llama.cpp's build.

    Raises:
        RecipeError: the wheel is not installed.
    """
    try:
        version = importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError as error:
        message, hint = "llama.cpp needs the package xllamacpp", install_hint("gguf-proof")
        raise RecipeError(message, hint=hint, code="missing-package") from error
    return f"llama.cpp b{version.rpartition('.')[2]}"


def _address(process: ServerProcess) -> str | None:
    match = _ADDRESS.search(process.log_end())
    return match[1] if match else None
