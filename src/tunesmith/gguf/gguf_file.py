"""Write a GGUF file: metadata, then tensors part by part, under its name only when it is complete."""

import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGUFValueType, GGUFWriter

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json, sync_folder, temporary_path, translate_enospc
from tunesmith.core.user_folders import check_writable
from tunesmith.fetch.model_folder import CARD
from tunesmith.gguf.tensor_types import GgufType, encode_rows, tensor_type
from tunesmith.gguf.tensors import Tensor

_VALUE_TYPES = (
    (bool, GGUFValueType.BOOL), (int, GGUFValueType.UINT32), (float, GGUFValueType.FLOAT32),
    (str, GGUFValueType.STRING), (list, GGUFValueType.ARRAY),
)  # fmt: skip


def general_metadata(folder: Path, file_type: GgufType) -> dict[str, Any]:
    """Return the keys about the file and its origin."""
    card = read_json(folder / CARD) if (folder / CARD).exists() else {}
    return {
        "general.type": "model",
        "general.name": card.get("name") or folder.name,
        "general.file_type": int(file_type.file),
        "general.quantization_version": GGML_QUANT_VERSION,
    }


def refuse_existing(out: Path) -> None:
    """Raise RecipeError if a file exists, or its folder cannot be written."""
    if os.path.lexists(out):
        raise RecipeError("exists already", where=str(out), hint="name another file", code="exists")
    check_writable(out.parent, hint="name another file")


def write_file(
    out: Path, architecture: str, metadata: Mapping[str, Any], tensors: Sequence[Tensor], file_type: GgufType
) -> None:
    """Write a GGUF file atomically. Memory does not grow with the size of a tensor.

    Args:
        architecture: the name in `general.architecture`.
        metadata: {key: bool, int >= 0, float, text, or list of one of these}.

    Raises:
        RecipeError: a value of a tensor is not finite, or too large for its type.
        DoesNotFit: the disk is full.
    """
    temporary = temporary_path(out)
    writer = GGUFWriter(None, architecture)
    for key, value in metadata.items():
        kind = next(kind for python_type, kind in _VALUE_TYPES if isinstance(value, python_type))
        writer.add_key_value(key, value, kind)
    kinds = [tensor_type(tensor.name, tensor.shape, file_type) for tensor in tensors]
    for tensor, tensor_kind in zip(tensors, kinds, strict=True):
        block, block_bytes = GGML_QUANT_SIZES[tensor_kind]
        size = prod(tensor.shape) // block * block_bytes
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, tensor_kind)
    with translate_enospc(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            assert writer.fout is not None
            file = writer.fout[0]
            writer.write_padding(file, file.tell())
            for tensor, tensor_kind in zip(tensors, kinds, strict=True):
                first = file.tell()
                for rows in tensor.chunks():
                    encode_rows(rows, tensor_kind, where=tensor.source).tofile(file)
                writer.write_padding(file, file.tell() - first)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(out)
        finally:
            writer.close()
            temporary.unlink(missing_ok=True)
        sync_folder(out.parent)
