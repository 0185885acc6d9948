"""A program that serves one GGUF file by llama.cpp's HTTP server, from the wheel xllamacpp.

Its argument is JSON: the fields of `LlamaCppOptions`. When the model is loaded, it writes "address URL".
"""

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KEY_VARIABLE = "TUNESMITH_ENGINE_KEY"
"""The environment variable with the API key of the server, if it has one; arguments are visible to other users."""


@dataclass(frozen=True, slots=True)
class LlamaCppOptions:
    """How llama.cpp runs a model.

    The cache of keys and values is fp32, and flash attention is off. llama.cpp's defaults are an fp16 cache and flash
    attention, which move the log-probabilities of an F32 file by 0.005, and without them by 0.00025 (SmolLM2 135M).

    Attributes:
        model: the GGUF file.
        lora: an adapter as a GGUF file.
        slots: how many requests are answered side by side.
        slot_tokens: the longest prompt with its answer.
        threads: 0 for half of the processors that this process may use, which are usually two for each core.
        port: 0 for a free one.
        alias: the name of the model in /v1/models; default the name of the file.
    """

    model: str
    lora: str | None = None
    slots: int = 4
    slot_tokens: int = 2048
    threads: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    alias: str | None = None

    @property
    def name(self) -> str:
        """The name of the model in the server."""
        return self.alias or Path(self.model).name

    def to_json(self) -> str:
        """Return the argument of this program."""
        return json.dumps(asdict(self))


def server_params(options: LlamaCppOptions) -> Any:
    """Return the `CommonParams` of xllamacpp for a server with these options."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.name}
    if options.lora:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(options.lora, 1.0)]
    params.hostnames, params.port = [options.host], options.port
    # llama.cpp divides the context among the slots.
    params.n_parallel, params.n_ctx = options.slots, options.slots * options.slot_tokens
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.fit_params = False  # or it could shorten the context to fit the memory
    params.cache_ram_mib = 0  # copies of the slots' caches; 8 GiB by default
    # Two threads for each core would wait for each other: they spin, and are slow if other programs run too.
    threads = options.threads or max(1, len(os.sched_getaffinity(0)) // 2)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if key := os.environ.get(KEY_VARIABLE):
        params.api_keys = [key]
    params.cors_origins = ""  # by default any page in a browser of this machine may ask
    return params


def serve(options: LlamaCppOptions) -> None:
    """Serve until the process is ended."""
    import xllamacpp

    try:
        server = xllamacpp.Server(server_params(options))
    except RuntimeError:
        sys.exit(1)  # the log has llama.cpp's reason; this error has none
    print(f"\naddress {server.listening_address}", flush=True)  # llama.cpp's log may be in the middle of a line
    threading.Event().wait()


if __name__ == "__main__":
    serve(LlamaCppOptions(**json.loads(sys.argv[1])))
