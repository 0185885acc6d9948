"""The headers of a model's weights, and the shapes of an architecture that is not described, read from them.

Linear layers are what the headers say; what stands between them is taken to be as in Llama.
"""

import json
import re
import struct
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from tunesmith.architecture.shapes import Attention, Layer, Linear, Shapes, Stack
from tunesmith.core.errors import DamagedFile, RecipeError

# Tables of vectors that are looked up, not multiplied: embeddings of tokens and positions, T5's of distances.
_LOOKED_UP = ("embed", "wpe", "relative_attention_bias", "shared")
_AGAIN = "fetch it again"


def shapes_from_headers(folder: Path, config: dict[str, Any]) -> Shapes:
    """Return the shapes of a folder's weights, of which only the headers are read.

    Raises:
        RecipeError: there are no weights, or a file that the folder's index names is missing.
        DamagedFile: a file is not what safetensors are.
    """
    tensors = tensor_shapes(folder)
    if not tensors:
        raise RecipeError(
            f"the sizes of `{config.get('model_type')}` cannot be told from its configuration alone",
            where=str(folder),
            hint="fetch its weights, too",
        )
    vocabulary = int(config.get("vocab_size", 0))
    hidden = _first(config, "hidden_size", "n_embd", "d_model") or 0
    matrices = {
        name.removesuffix(".weight"): shape
        for name, shape in tensors.items()
        if len(shape) == 2 and vocabulary not in shape and not any(part in name for part in _LOOKED_UP)
    }
    heads = _first(config, "num_attention_heads", "n_head", "num_heads", "encoder_attention_heads") or 1
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers", "encoder_layers") or 1
    inner = max((max(shape) for shape in matrices.values()), default=hidden)
    has_encoder = bool(config.get("is_encoder_decoder"))
    # Names are whole here, so every matrix is a stack of one layer that only multiplies, and others only remember.
    stacks = [
        Stack(
            name,
            1,
            Layer((Linear("", shape[0], shape[1], name),), (), 0, 0, norms=0, rms_norm=False, dropouts=0),
            encoder=has_encoder and "encoder." in name,
        )
        for name, shape in matrices.items()
    ]
    attention = Attention(heads, hidden, hidden)
    between = Layer((), (attention,), inner, activations=3, norms=2, rms_norm=True)
    both = (attention, replace(attention, cross=True))
    stacks.append(Stack("", layers, replace(between, attention=both) if has_encoder else between))
    if has_encoder:
        stacks.append(Stack("", layers, between, encoder=True))
    return Shapes(
        parameters=sum(prod(shape) for shape in tensors.values()),
        hidden=hidden,
        vocabulary=vocabulary,
        stacks=tuple(stacks),
        tied=not any(re.search(r"(^|\.)(lm_head|embed_out|output)\.weight$", name) for name in tensors),
        positions=_first(config, "max_position_embeddings", "n_positions"),
        known=False,
    )


def stored_dtypes(folder: Path) -> set[str]:
    """Return in which precisions a folder's numbers are stored, as safetensors names them: `BF16`, `F32`.

    Raises:
        RecipeError: a file that the folder's index names is missing.
        DamagedFile: a file is not what safetensors are.
    """
    return {kind for entry in _headers(folder).values() if (kind := str(entry["dtype"])).startswith(("F", "BF"))}


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Return {name: shape} of all tensors in a folder's weights; empty if it has none. Only headers are read.

    Raises:
        RecipeError: a file that the folder's index names is missing.
        DamagedFile: a file is not safetensors, has not the length that its header gives, or lacks a tensor that the
            index lists.
    """
    return {name: list(entry["shape"]) for name, entry in _headers(folder).items()}


def _headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the headers of a folder's weights say of each tensor."""
    index = _index(folder)
    tensors: dict[str, dict[str, Any]] = {}
    for file in _weight_files(folder, index):
        found = _header(file)
        if lost := [name for name, part in index.items() if part == file.name and name not in found]:
            raise DamagedFile(
                f"lacks the tensor {lost[0]}, which the index says it holds", where=str(file), hint=_AGAIN
            )
        tensors |= found
    return tensors


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """Return one file's header; raise DamagedFile if the file is not as long as its header requires."""
    try:
        with file.open("rb") as raw:
            length = struct.unpack("<Q", raw.read(8))[0]
            header: dict[str, dict[str, Any]] = json.loads(raw.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise DamagedFile("has no header of safetensors", where=str(file), hint=_AGAIN) from error
    if (size := file.stat().st_size) != end:
        raise DamagedFile(f"has {size:,} bytes, and its header says {end:,}", where=str(file), hint=_AGAIN)
    return header


def _index(folder: Path) -> dict[str, str]:
    """Return {tensor: file} of weights in several files; empty if they are in one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return {}
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedFile("is not an index of weights", where=str(index), hint=_AGAIN) from error


def _first(config: dict[str, Any], *names: str) -> int | None:
    """Return the first of these sizes that a configuration gives."""
    return next((int(config[name]) for name in names if config.get(name)), None)


def _weight_files(folder: Path, index: dict[str, str]) -> list[Path]:
    """Return the files that transformers reads; some models bring the same weights again in another layout."""
    if index:
        names = sorted(set(index.values()))
        if lost := [name for name in names if not (folder / name).exists()]:
            raise RecipeError(f"lacks {lost[0]}, which its index names", where=str(folder), hint=_AGAIN)
        return [folder / name for name in names]
    one = folder / "model.safetensors"
    return [one] if one.exists() else sorted(folder.glob("*.safetensors"))
