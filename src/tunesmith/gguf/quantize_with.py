"""K-quants, which only llama.cpp's own program `llama-quantize` can write."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.architecture.weight_headers import stored_dtypes
from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.files import sync_folder, temporary_path, translate_enospc
from tunesmith.core.suggest import did_you_mean
from tunesmith.gguf.gguf_file import refuse_existing
from tunesmith.gguf.quantizer import find_quantizer
from tunesmith.gguf.tensor_types import K_TYPES
from tunesmith.gguf.write import write_gguf

_MAGIC = b"GGUF"
_FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")


def write_quantized_gguf(
    folder: Path, out: Path, *, type: str, program: Path | str, metadata: Mapping[str, Any] = {}
) -> list[str]:
    """Write a model as `write_gguf` does, in a type of `K_TYPES`, and return warnings.

    The model is first written without loss to a temporary file in the folder of `out`, of 2 or 4 bytes a parameter.

    Args:
        program: the path of `llama-quantize`, or its name on the PATH.

    Raises:
        RecipeError: as for `write_gguf`, or the program does not exist.
        TunesmithError: the program failed.
    """
    if type not in K_TYPES:
        hint = did_you_mean(type, K_TYPES)
        raise RecipeError(f"`--quantize-with` writes no type `{type}`", hint=hint, code="unknown-gguf-type")
    refuse_existing(out)
    executable = find_quantizer(program)
    whole, quantized = temporary_path(out), temporary_path(out)
    try:
        warnings = write_gguf(folder, whole, type=_lossless_type(folder), metadata=metadata)
        with translate_enospc(out):
            output = _run(executable, whole, quantized, type)
            with quantized.open("rb") as file:
                os.fsync(file.fileno())
            quantized.replace(out)
            sync_folder(out.parent)
    finally:
        whole.unlink(missing_ok=True)
        quantized.unlink(missing_ok=True)
    if match := _FALLBACK.search(output):
        many = f"{match[1]} of {match[2]} matrices"
        warnings.append(f"{many} have rows that are no multiple of 256, and got a type with more bits than {type}")
    return warnings


def _lossless_type(folder: Path) -> str:
    """Return the smallest type that holds the stored weights exactly."""
    return {frozenset({"BF16"}): "bf16", frozenset({"F16"}): "f16"}.get(frozenset(stored_dtypes(folder)), "f32")


def _run(executable: str, source: Path, out: Path, type: str) -> str:
    """Run the program and return its output; raise TunesmithError if it fails or writes no GGUF file."""
    command = [executable, str(source.absolute()), str(out.absolute()), type.upper()]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        message = f"cannot be run: {os.strerror(error.errno or 0)}"
        raise RecipeError(message, where=executable, code="quantize-failed") from error
    output = done.stdout + done.stderr
    if done.returncode != 0 or not _is_gguf(out):
        last = " ".join(output.split())[-300:] or f"it ended with exit code {done.returncode}"
        raise TunesmithError(f"could not quantize: {last}", where=executable, code="quantize-failed")
    return output


def _is_gguf(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
