"""The format `gguf`: a file for llama.cpp and the programs that are built on it, of the model or of its adapter."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import temporary_path
from tunesmith.core.progress import log
from tunesmith.engines.base import Engine
from tunesmith.engines.llama_cpp import llama_cpp_version, start_llama_cpp
from tunesmith.export import adapter, merged
from tunesmith.export.formats import Options, file_stem
from tunesmith.export.gguf_metadata import gguf_metadata
from tunesmith.export.modelfile import write_modelfile
from tunesmith.fetch.reference import ModelFolder
from tunesmith.gguf.architectures import find_architecture, read_model_config
from tunesmith.gguf.lora import LORA_TYPES, write_lora_gguf
from tunesmith.gguf.quantize_with import write_quantized_gguf
from tunesmith.gguf.quantizer import find_quantizer
from tunesmith.gguf.tensor_types import K_TYPES
from tunesmith.gguf.write import describe_model, write_gguf

_DEFAULT, _ADAPTER_DEFAULT = "f16", "f32"
_MIN_CONTEXT = 2048


def check(model: ModelFolder, options: Options) -> None:
    """Raise RecipeError if llama.cpp cannot run the model or read the adapter, or if the type needs another program."""
    kind = _type(options)
    if options.adapter_only:
        find_architecture(read_model_config(model.root.path), model.root.path)
        adapter.check(model, Options(readers=("llama.cpp",)))
        if kind not in LORA_TYPES:
            message = f"an adapter is not written as `{kind}`"
            raise RecipeError(message, where="--type", hint=f"use {', '.join(LORA_TYPES)}", code="wrong-value")
    else:
        require_describable(model.root.path)
    if (kind in K_TYPES) != bool(options.quantize_with):
        message = f"`{kind}` is written by llama-quantize" if kind in K_TYPES else f"`{kind}` needs no other program"
        hint = "add --quantize-with /path/to/llama-quantize" if kind in K_TYPES else "leave --quantize-with out"
        raise RecipeError(message, where="--quantize-with", hint=hint, code="contradiction")
    if options.quantize_with:
        find_quantizer(options.quantize_with)


def require_describable(base: Path) -> None:
    """Raise RecipeError if a file of a base could not be written; training changes only weights and adds tokens."""
    try:
        describe_model(base)
    except RecipeError as error:
        if error.code != "no-stop-token":  # `model.chat_markup` may have added one
            raise


def require_engine() -> None:
    """Raise RecipeError if llama.cpp is not installed, with which the file is proved."""
    llama_cpp_version()


def bytes_needed(model: ModelFolder, options: Options) -> int:
    """Return the size of the file, and of the transformers folder from which it is made.

    With an adapter alone, these are of the base in f32, with which the adapter is proved.
    """
    if options.adapter_only:
        return merged.bytes_stored(model, 4 + 4) + adapter.bytes_needed(model, options)
    return merged.bytes_stored(model, 4 + (4 if _type(options) == "f32" else 2))


def build(model: ModelFolder, folder: Path, options: Options) -> str:
    """Write the file to a folder and return the type of its weights."""
    kind, out, metadata = _type(options), folder / _file_name(model, options), gguf_metadata(model)
    if options.adapter_only:
        write_lora_gguf(model, out, type=kind, metadata=metadata)
        _write_modelfile(model, folder, _base_file(model), adapter_file=out.name)
        return kind
    with _plain_folder(model, folder) as plain:
        if options.quantize_with:
            program = options.quantize_with
            warnings = write_quantized_gguf(plain, out, type=kind, program=program, metadata=metadata)
        else:
            warnings = write_gguf(plain, out, type=kind, metadata=metadata)
    for warning in warnings:
        log(f"warning: {warning}")
    _write_modelfile(model, folder, out.name)
    return kind


@contextmanager
def open_engine(model: ModelFolder, folder: Path, options: Options) -> Iterator[Engine]:
    """Run the file in llama.cpp; an adapter alone on its base in f32."""
    file = folder / _file_name(model, options)
    if not options.adapter_only:
        with _running(file, model) as engine:
            yield engine
        return
    assert model.base is not None
    base = temporary_path(folder / "base.gguf")
    try:
        with _plain_folder(model.base, folder) as plain:
            write_gguf(plain, base, type="f32")
        with _running(base, model, lora=file) as engine:
            yield engine
    finally:
        base.unlink(missing_ok=True)


def _write_modelfile(model: ModelFolder, folder: Path, file: str, adapter_file: str | None = None) -> None:
    """Write Ollama's Modelfile, unless Ollama's format cannot express the model's prompt."""
    try:
        write_modelfile(folder, model, file=file, adapter=adapter_file)
    except RecipeError as error:
        log(f"warning: no Modelfile for Ollama: {error}")


def _base_file(model: ModelFolder) -> str:
    """Return the name of the base's own GGUF file, or the one that its users have to write."""
    pin = model.root.pin
    return Path(pin.at).name if pin is not None and pin.kind == "gguf" else "BASE.gguf"


@contextmanager
def _plain_folder(model: ModelFolder, folder: Path) -> Iterator[Path]:
    """Yield a transformers folder of a model that exists only during the block."""
    plain = temporary_path(folder / "plain")
    plain.mkdir()
    try:
        merged.build(model, plain, Options())
        yield plain
    finally:
        shutil.rmtree(plain, ignore_errors=True)


def _running(file: Path, model: ModelFolder, lora: Path | None = None) -> AbstractContextManager[Engine]:
    positions = read_model_config(model.root.path).max_position_embeddings
    limit = int(model.card.get("data", {}).get("max_tokens_per_example") or 0) + _MIN_CONTEXT
    return closing(start_llama_cpp(file, lora=lora, slot_tokens=min(positions, limit)))


def _type(options: Options) -> str:
    return options.type or (_ADAPTER_DEFAULT if options.adapter_only else _DEFAULT)


def _file_name(model: ModelFolder, options: Options) -> str:
    return f"{file_stem(model)}-{_type(options)}{'-lora' if options.adapter_only else ''}.gguf"
