"""vLLM, and tunesmith's own server, which has the same routes for token ids.

Routes: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.files import read_json
from tunesmith.core.json_server import JsonServer, RequestRefused
from tunesmith.engines.base import EngineAnswer, Ids, Messages
from tunesmith.engines.greedy_scores import Step, score_by_answers
from tunesmith.engines.openai_api import greedy_chat
from tunesmith.engines.server_process import ServerProcess, free_port

PYTHON_VARIABLE = "TUNESMITH_VLLM_PYTHON"
"""The environment variable with the Python of an environment that has vLLM."""

_SECONDS_TO_LOAD = 1200.0  # it compiles kernels at its first start
_MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm/config/lora.py, MaxLoRARanks
_TOKEN = "token_id:"  # how `return_tokens_as_token_ids` writes a token


class VllmApi:
    """A model of a server.

    Args:
        server: its root, without /v1.
        model: the name of the model, or of an adapter, in the server.
        name: the program and its version.
        ids_have_end: the ids of an answer include the token that ended it.
        is_adapter: the model is an adapter on another one.
        process: the process of the server, which `close` ends.
    """

    def __init__(
        self, server: JsonServer, model: str, name: str, *, ids_have_end: bool = True, is_adapter: bool = False,
        process: ServerProcess | None = None,
    ) -> None:  # fmt: skip
        self.name, self._server, self._model = name, server, model
        self._ids_have_end, self._is_adapter, self.process = ids_have_end, is_adapter, process

    @property
    def url(self) -> str:
        """The root of the server."""
        return self._server.url

    def encode(self, text: str, *, add_special: bool = False) -> list[int] | None:
        """Return the ids of a text."""
        body = {"model": self._model, "prompt": text, "add_special_tokens": add_special}
        return list(self._server.post("/tokenize", body)["tokens"])

    def encode_chat(self, messages: Messages) -> list[int] | None:
        """Return the ids of a conversation, as the server's chat template renders it."""
        body = {"model": self._model, "messages": list(messages)}
        return list(self._server.post("/tokenize", body, patient=False)["tokens"])

    def token_scores(self, prompt: Ids, answer: Ids, top: int) -> list[Mapping[int, float]] | None:
        """Return the log-probabilities of one pass over prompt and answer, which the server echoes.

        An adapter in vLLM is scored by greedy answers: its layer for the logits of adapters fails on the tokens of a
        prompt, and ends the server (seen in 0.32.0 on a CPU).
        """
        if self._is_adapter:
            return [step or {} for step in score_by_answers(prompt, answer, partial(self._steps, top))]
        choice = self._scored([*prompt, *answer], 0, top, echo=True)
        own, likely = choice["logprobs"]["token_logprobs"][-len(answer) :], _likely(choice)[-len(answer) :]
        return [{**row, token: score} for token, score, row in zip(answer, own, likely, strict=True)]

    def _steps(self, top: int, prompt: list[int], count: int) -> list[Step]:
        choice = self._scored(prompt, count, top)
        chosen = [int(token.removeprefix(_TOKEN)) for token in choice["logprobs"]["tokens"]]
        return list(zip(chosen, _likely(choice), strict=True))

    def _scored(self, prompt: Ids, count: int, top: int, *, echo: bool = False) -> Any:
        """Return the greedy continuation of ids, with log-probabilities whose tokens are written as ids."""
        body = {
            "model": self._model, "prompt": list(prompt), "max_tokens": count, "temperature": 0.0, "echo": echo,
            "logprobs": top, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        return self._server.post("/v1/completions", body)["choices"][0]

    def answer(self, prompt: Ids, *, max_new_tokens: int) -> EngineAnswer | None:
        """Return the greedy answer to ids."""
        body = {"prompt": list(prompt), "max_tokens": max_new_tokens, "temperature": 0.0, "return_token_ids": True}
        try:
            response = self._server.post("/v1/completions", {"model": self._model, **body})
        except RequestRefused as error:  # such as a prompt beyond the context length
            return EngineAnswer("", None, False, error.message)
        choice = response["choices"][0]
        ids, stopped = tuple(choice["token_ids"]), choice["finish_reason"] != "length"
        return EngineAnswer(choice["text"], ids[:-1] if stopped and self._ids_have_end else ids, stopped)

    def answer_chat(self, messages: Messages, *, max_new_tokens: int) -> EngineAnswer | None:
        """Return the greedy chat completion."""
        return greedy_chat(self._server.below("/v1"), self._model, messages, max_new_tokens=max_new_tokens)

    def close(self) -> None:
        """End the server if this object started it."""
        if self.process:
            self.process.close()


def _likely(choice: Any) -> list[dict[int, float]]:
    """Return the most probable tokens of each step; the first token of a text has none."""
    rows = choice["logprobs"]["top_logprobs"]
    return [{int(key.removeprefix(_TOKEN)): value for key, value in (row or {}).items()} for row in rows]


def start_vllm(
    folder: Path,
    *,
    name: str,
    adapters: Mapping[str, Path] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    key: str | None = None,
    options: Sequence[str] = (),
) -> VllmApi:
    """Start vLLM with a model's folder, in a process that ends when we do; ask the last adapter, or the model.

    Args:
        name: the name under which the model is served.
        adapters: the folders of adapters on this model, each by the name under which it is served.
        port: 0 for a free one.
        key: the API key that the server asks for.
        options: further options of `vllm serve`.

    Raises:
        RecipeError: vLLM is not installed here, and TUNESMITH_VLLM_PYTHON names no environment that has it.
        TunesmithError: vLLM cannot load the folder; the message has the end of its log.
    """
    port = port or free_port()
    command = [vllm_python(), "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--served-model-name", name]
    command += ["--host", host, "--port", str(port), *serve_options(adapters or {}), *options]
    # Our command line turns torch's compiler off for itself; vLLM does not start without it.
    environment: dict[str, str | None] = {"VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": None}
    environment |= {"VLLM_API_KEY": key} if key else {}
    process = ServerProcess("vLLM", command, environment=environment)
    server = JsonServer(f"http://{host}:{port}", key=key, before_retry=process.check)
    version = process.wait_until(lambda: _version(server), _SECONDS_TO_LOAD)
    asked = [name, *(adapters or ())][-1]
    return VllmApi(server, asked, f"vLLM {version}", is_adapter=bool(adapters), process=process)


def serve_options(adapters: Mapping[str, Path]) -> list[str]:
    """Return the options of `vllm serve` with which a folder and its adapters answer as tunesmith does.

    By default vLLM applies the sampling of `generation_config.json` to requests without their own, and the chat
    template of the base to adapters too, although it may lack the system turn that an adapter was trained with.
    """
    options = ["--generation-config", "vllm"]
    if adapters:
        rank = max(map(highest_rank, adapters.values()))
        modules = [f"{name}={folder}" for name, folder in adapters.items()]
        options += ["--enable-lora", "--max-lora-rank", str(max_lora_rank(rank)), "--lora-modules", *modules]
    templates = [folder / "chat_template.jinja" for folder in adapters.values()]
    if len(templates) == 1 and templates[0].exists():
        options += ["--chat-template", str(templates[0])]
    return options


def max_lora_rank(rank: int) -> int:
    """Return the smallest value of vLLM's `--max-lora-rank` that holds an adapter of this rank."""
    return next((limit for limit in _MAX_RANKS if limit >= rank), rank)


def highest_rank(adapter: Path) -> int:
    """Return the highest rank of the modules of an adapter, which is a folder of PEFT."""
    config = read_json(adapter / "adapter_config.json")
    ranks: list[int] = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return max(ranks)


def _version(server: JsonServer) -> str | None:
    try:
        return str(server.get("/version", patient=False)["version"])
    except TunesmithError:
        return None


def vllm_python() -> str:
    """Return the Python of an environment with vLLM; raise RecipeError if none is known."""
    if path := os.environ.get(PYTHON_VARIABLE):
        return path
    if importlib.util.find_spec("vllm"):
        return sys.executable
    message = "vLLM is not installed in this environment"
    hint = f"install it in a separate environment, and set {PYTHON_VARIABLE} to the python of that environment"
    raise RecipeError(message, hint=hint, code="missing-package")
