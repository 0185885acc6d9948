"""Serve a model by another program: export it, prove the export, start the program, and prove what it answers."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.core import interrupt
from tunesmith.core.errors import Interrupted
from tunesmith.core.user_folders import cache_root
from tunesmith.engines.llama_cpp import LlamaCpp, llama_cpp_version, start_llama_cpp
from tunesmith.engines.vllm import VllmApi, start_vllm, vllm_python
from tunesmith.export.export import Exported, export_resolved
from tunesmith.export.formats import Options
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.proof.prove import prove, require_proved
from tunesmith.proof.questions import find_rows
from tunesmith.proof.record import Proof
from tunesmith.serve.guard import KEY_VARIABLE, read_key
from tunesmith.serve.http_server import listen
from tunesmith.serve.names import Served

EngineName = Literal["llama.cpp", "vllm"]

_FORMATS = {"llama.cpp": "gguf", "vllm": "merged"}
_ROWS = 20  # of the proof over HTTP at each start; the export was proved with all


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of `serve --engine`.

    Attributes:
        type: the type of the weights; None for that of the format.
        slot_tokens: the longest prompt with its answer; None for the engine's own limit.
    """

    engine: EngineName
    host: str = "127.0.0.1"
    port: int = 8000
    type: str | None = None
    slot_tokens: int | None = None


def serve_by_engine(argument: str, options: EngineOptions, *, announce: Callable[[dict[str, Any]], None]) -> None:
    """Serve a model by another program until it exits, or until SIGTERM or Ctrl-C.

    Clients ask the program itself: nothing of tunesmith is between them.

    Args:
        argument: the model: REFERENCE or NAME=REFERENCE.
        announce: called with the address when the program is proved and ready for requests.

    Raises:
        RecipeError: the program is not installed, other machines could reach it without a key, the port is taken, or
            the model cannot be exported.
        NotProved: the export, or the running program, does not give the answers of the model.
        TunesmithError: the program cannot be started, or exited.
    """
    served = Served.parse(argument)
    _require_program(options.engine)
    read_key(options.host)
    listen(options.host, options.port).close()  # before the export, which may take minutes
    model = resolve(served.reference)
    exported = _export(model, options)
    engine = _start(exported, served.name, options)
    try:
        assert engine.process is not None
        proof = prove(model, engine, type=exported.type, rows=find_rows(model, _ROWS))
        require_proved(proof)
        announce(_facts(engine, served.name, exported, proof))
        with interrupt.catch_signals(), contextlib.suppress(Interrupted):
            engine.process.wait()
            engine.process.check()  # which raises, because it has exited
    finally:
        engine.close()


def _require_program(engine: EngineName) -> None:
    """Raise RecipeError if the program is not installed."""
    if engine == "llama.cpp":
        llama_cpp_version()
    else:
        vllm_python()


def _export(model: ModelFolder, options: EngineOptions) -> Exported:
    """Return the proved export of a model in the cache, made if it is not there."""
    to = _FORMATS[options.engine]
    folder = cache_root() / "exports" / "-".join((model.digest()[:16], to, *filter(None, [options.type])))
    folder.parent.mkdir(parents=True, exist_ok=True)
    return export_resolved(model, folder, to, Options(type=options.type), replace_other=True)


def _start(exported: Exported, name: str, options: EngineOptions) -> LlamaCpp | VllmApi:
    key = os.environ.get(KEY_VARIABLE)
    if options.engine == "llama.cpp":
        file = next(path for path in map(Path, exported.files) if path.suffix == ".gguf")
        limit: dict[str, Any] = {"slot_tokens": options.slot_tokens} if options.slot_tokens else {}
        return start_llama_cpp(
            exported.folder / file, key=key, alias=name, host=options.host, port=options.port, **limit
        )
    limits = ["--max-model-len", str(options.slot_tokens)] if options.slot_tokens else []
    # In another precision than that of the file, vLLM would not be the engine that was proved.
    dtype = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[exported.type]
    return start_vllm(
        exported.folder, name=name, host=options.host, port=options.port, key=key, options=["--dtype", dtype, *limits]
    )


def _facts(engine: LlamaCpp | VllmApi, name: str, exported: Exported, proof: Proof) -> dict[str, Any]:
    assert engine.process is not None
    return {
        "url": f"{engine.url}/v1", "model": name, "engine": engine.name, "type": exported.type,
        "export": str(exported.folder), "log": str(engine.process.log), "api_key": KEY_VARIABLE in os.environ,
        "proof": proof.to_json(),
    }  # fmt: skip
