"""Run GGUF files with llama.cpp in this process, which starts faster than a process of its own."""

from pathlib import Path
from types import TracebackType
from typing import Any

import xllamacpp

from tunesmith.core.json_server import JsonServer
from tunesmith.engines import llama_cpp
from tunesmith.engines.llama_cpp_server import LlamaCppOptions, server_params


def log_probability_limit(kind: str) -> float:
    """Return the largest difference from transformers in fp32 for a model type.

    GELU in llama.cpp is a table in f16, which rounds more than all other operations together.
    """
    return 5e-3 if kind.startswith(("gemma", "gpt")) else 2e-4


class LlamaCpp(llama_cpp.LlamaCpp):
    """A model in llama.cpp.

    Args:
        file: a GGUF file.
        lora: a GGUF file of an adapter on it.
        context: positions of the cache.
    """

    def __init__(self, file: Path, *, lora: Path | None = None, context: int = 256) -> None:
        options = LlamaCppOptions(str(file), str(lora) if lora else None, slots=1, slot_tokens=context, threads=1)
        params = server_params(options)
        params.n_threads_http, params.verbosity, params.warmup = 1, 0, False
        self._in_process = xllamacpp.Server(params)
        server = JsonServer(self._in_process.listening_address)
        super().__init__(server, options.name, llama_cpp.llama_cpp_version())

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._in_process

    def ask(self, path: str, **body: Any) -> Any:
        """Return the JSON answer of a route."""
        return self._server.post(path, body)

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text in which the names of control tokens are text."""
        return list(self.ask("/tokenize", content=text, add_special=False, parse_special=False)["tokens"])
