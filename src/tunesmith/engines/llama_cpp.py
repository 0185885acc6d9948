"""llama.cpp's HTTP server, by its own routes, which take and give token ids.

Routes: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

import importlib.metadata
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError, TunesmithError, install_hint
from tunesmith.core.json_server import JsonServer, RequestRefused
from tunesmith.engines.base import EngineAnswer, Ids, Messages
from tunesmith.engines.llama_cpp_server import LlamaCppOptions
from tunesmith.engines.server_process import ServerProcess
from tunesmith.inference.endpoint import ask_chat

_SECONDS_TO_LOAD = 600.0  # a large file from a slow disk
_ADDRESS = re.compile(r"^address (http\S+)$", re.MULTILINE)
_ALL_TOKENS = 1_000_000  # more than any vocabulary; the server gives at most as many as there are


class LlamaCpp:
    """A running llama.cpp.

    Args:
        server: its root, without /v1.
        name: the program and its version.
        key: for the routes of the server.
        process: the process of the server, which `close` ends.
    """

    def __init__(self, server: JsonServer, name: str, *, process: ServerProcess | None = None) -> None:
        self.name, self._server, self._process = name, server, process

    def encode(self, text: str, *, add_special: bool = False) -> list[int] | None:
        """Return the ids of a text, as those of a text prompt if `add_special`."""
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return list(self._server.post("/tokenize", body)["tokens"])

    def encode_chat(self, messages: Messages) -> list[int] | None:
        """Return the ids of what the file's chat template renders."""
        prompt = self._server.post("/apply-template", {"messages": list(messages)}, patient=False)["prompt"]
        return self.encode(prompt)  # nothing added: the template writes its own control tokens

    def token_scores(self, prompt: Ids, answer: Ids, top: int) -> list[Mapping[int, float]] | None:
        """Return log-probabilities by greedy answers, each begun after the last token at which one differs.

        llama.cpp has no route that scores given tokens. The probabilities at each step are those after the tokens
        before it, so a greedy answer scores the given one up to and including the first token at which they differ.
        """
        scores: list[Mapping[int, float]] = []
        while len(scores) < len(answer):
            done = len(scores)
            steps = self._steps([*prompt, *answer[:done]], len(answer) - done, top)
            for (chosen, likely), token in zip(steps, answer[done:], strict=False):
                scores.append(likely if token in likely else likely | self._score_of(prompt, answer, len(scores)))
                if chosen != token:
                    break
            if len(scores) == done:
                raise TunesmithError("gave no probabilities", where=self.name, code="server-failed")
        return scores

    def _score_of(self, prompt: Ids, answer: Ids, place: int) -> dict[int, float]:
        """Return the log-probability of an answer's token that is not among the most probable."""
        (_, every), *_ = self._steps([*prompt, *answer[:place]], 1, _ALL_TOKENS)
        return {answer[place]: every[answer[place]]} if answer[place] in every else {}

    def _steps(self, prompt: Ids, count: int, top: int) -> list[tuple[int, dict[int, float]]]:
        """Return (token, log-probabilities) for each token of a greedy answer, including the one that ends it."""
        response = self._complete(prompt, count, n_probs=top)
        return [
            (step["id"], {token["id"]: token["logprob"] for token in step["top_logprobs"]})
            for step in response["completion_probabilities"]
        ]

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
        answer = ask_chat(self._server, "any", messages, max_tokens=max_new_tokens, temperature=0.0, cache_prompt=False)
        return EngineAnswer(answer.text, None, answer.stopped, answer.error)

    def _complete(self, prompt: Ids, count: int, **options: Any) -> Any:
        # cache_prompt off: a cached beginning was computed in batches of another size, and differs in the last digits.
        fixed = {"n_predict": count, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
        return self._server.post("/completion", {"prompt": list(prompt), **fixed, **options})

    def close(self) -> None:
        """End the server if this object started it."""
        if self._process:
            self._process.close()


def start_llama_cpp(file: Path, *, lora: Path | None = None, **options: Any) -> LlamaCpp:
    """Start llama.cpp with a GGUF file, in a process that ends when we do.

    Args:
        lora: an adapter as a GGUF file.
        options: other fields of `LlamaCppOptions`, such as `slot_tokens`.

    Raises:
        RecipeError: the wheel xllamacpp is not installed.
        TunesmithError: llama.cpp cannot load the file; the message has the end of its log.
    """
    version = llama_cpp_version()
    settings = LlamaCppOptions(str(file), str(lora) if lora else None, **options)
    command = [sys.executable, "-P", "-m", "tunesmith.engines.llama_cpp_server", settings.to_json()]
    process = ServerProcess("llama.cpp", command)
    try:
        url = process.wait_until(lambda: _address(process), _SECONDS_TO_LOAD)
    except BaseException:
        process.close()
        raise
    return LlamaCpp(JsonServer(url, before_retry=process.check), version, process=process)


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
