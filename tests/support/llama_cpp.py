"""Run GGUF files with llama.cpp, in this process."""

import json
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

_VOCABULARY = 400  # more than any tiny model has, so that all log-probabilities are returned


class LlamaCpp:
    """A model in llama.cpp, with a cache in fp32 and without flash attention, whose rounding would hide errors.

    Args:
        file: a GGUF file.
        lora: a GGUF file of an adapter on it.
        context: positions of the cache.
    """

    def __init__(self, file: Path, *, lora: Path | None = None, context: int = 256) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel = str(file), context, 1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = settings.n_threads_http = 1
        settings.port = settings.n_gpu_layers = settings.verbosity = 0
        settings.warmup = settings.cache_prompt = settings.fit_params = False
        if lora is not None:
            settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self._server = xllamacpp.Server(settings)
        self._url = self._server.listening_address

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._server

    def ask(self, path: str, **body: Any) -> Any:
        """Return the JSON answer of its HTTP server."""
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self._url + path, data, headers)) as response:
            return json.load(response)

    def encode(self, text: str, *, special: bool = False, whole: bool = False) -> list[int]:
        """Return the ids of a text.

        Args:
            special: whether names of control tokens in it become these tokens.
            whole: whether to add the tokens that begin and end a text.
        """
        ids: list[int] = self.ask("/tokenize", content=text, add_special=whole, parse_special=special)["tokens"]
        return ids

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the ids of the prompt of a conversation, by the file's own chat template.

        The server leaves out a first token of the template that it adds to every text anyway.
        """
        return self.encode(self.ask("/apply-template", messages=messages)["prompt"], special=True, whole=True)

    def next_scores(self, prompt: list[int]) -> dict[int, float]:
        """Return the log-probability of every token after a prompt.

        The server gives none with a token that is a part of a character, so it has to choose a letter. That bias does
        not change the log-probabilities.
        """
        letter = [[self.encode("a")[-1], 1000.0]]
        answer = self.ask(
            "/completion", prompt=prompt, n_predict=1, temperature=0, n_probs=_VOCABULARY, logit_bias=letter
        )
        return {top["id"]: top["logprob"] for top in answer["completion_probabilities"][0]["top_logprobs"]}

    def answer(self, prompt: list[int], *, tokens: int) -> tuple[list[int], bool]:
        """Return the ids of a greedy answer of at most `tokens` tokens, and whether a stop token ended it."""
        answer = self.ask("/completion", prompt=prompt, n_predict=tokens, temperature=0, return_tokens=True)
        return answer["tokens"], answer["stop_type"] == "eos"
