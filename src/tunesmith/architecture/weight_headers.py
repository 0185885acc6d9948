"""Read the headers of a model's weight files, and derive the shapes of unknown architectures from them.

Linear layers are read from the headers; everything else is assumed to be as in Llama.
"""

import json
import re
import struct
from collections.abc import Collection
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from tunesmith.architecture.linear_layers import first_number, linear_layers
from tunesmith.architecture.shapes import Attention, Layer, Linear, Shapes, Stack
from tunesmith.core.errors import DamagedFile, RecipeError

EMBEDDINGS = ("embed_tokens", "wte", "shared", "word_embeddings", "embed_in", "tok_embeddings", "embedding")
"""The last parts of the names of input embeddings in the architectures of transformers."""

OUTPUTS = ("lm_head", "embed_out", "output")
"""Names of the output layer. It is not stored if it is tied to the embedding."""

_FETCH_AGAIN = "fetch the model again"


def shapes_from_headers(folder: Path, config: dict[str, Any]) -> Shapes:
    """Return the shapes of a model, from the headers of its weight files.

    Raises:
        RecipeError: there are no weights, or a file is missing that the folder's index names.
        DamagedFile: a file is not valid safetensors.
    """
    tensors = tensor_shapes(folder)
    if not tensors:
        message = f"the shapes of `{config.get('model_type')}` cannot be derived from its configuration alone"
        raise RecipeError(message, where=str(folder), hint="fetch the weights too", code="unknown-shapes")
    vocabulary = int(config.get("vocab_size", 0))
    hidden = first_number(config, "hidden_size", "n_embd", "d_model") or 0
    matrices = linear_layers(tensors, config)
    heads = first_number(config, "num_attention_heads", "n_head", "num_heads", "encoder_attention_heads") or 1
    layers = first_number(config, "num_hidden_layers", "n_layer", "num_layers", "encoder_layers") or 1
    inner = _mlp_width(matrices.values(), hidden)
    has_encoder = bool(config.get("is_encoder_decoder"))
    # Tensor names are complete here, so each matrix becomes a stack with a single linear layer. The saved tensors of
    # all other operations are in separate stacks without linear layers.
    stacks = []
    for name, linear in matrices.items():
        layer = Layer((linear,), (), 0, 0, norms=0, rms_norm=False, dropouts=0)
        stacks.append(Stack(name, 1, layer, encoder=has_encoder and "encoder." in name))
    attention = Attention(heads, hidden, hidden)
    others = Layer((), (attention,), inner, activations=3, norms=2, rms_norm=True)
    if has_encoder:
        decoder = replace(others, attention=(attention, replace(attention, cross=True)))
        stacks += [Stack("", layers, decoder), Stack("", layers, others, encoder=True)]
    else:
        stacks.append(Stack("", layers, others))
    return Shapes(
        parameters=sum(prod(shape) for shape in tensors.values()),
        hidden=hidden,
        vocabulary=vocabulary,
        stacks=tuple(stacks),
        tied=not any(re.search(r"(^|\.)(lm_head|embed_out|output)\.weight$", name) for name in tensors),
        positions=first_number(config, "max_position_embeddings", "n_positions"),
        known=False,
    )


def stored_dtypes(folder: Path) -> set[str]:
    """Return the floating-point dtypes in a folder's weight files, as safetensors names them: `BF16`, `F32`.

    Raises:
        RecipeError: a file is missing that the folder's index names.
        DamagedFile: a file is not valid safetensors.
    """
    return {dtype for entry in _headers(folder).values() if (dtype := str(entry["dtype"])).startswith(("F", "BF"))}


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Return {name: shape} of all tensors in a folder's weight files; empty if there are none. Reads only headers.

    Raises:
        RecipeError: a file is missing that the folder's index names.
        DamagedFile: a file is not valid safetensors, its size differs from its header, or a tensor is missing that the
            index lists.
    """
    return {name: list(entry["shape"]) for name, entry in _headers(folder).items()}


def tensor_files(folder: Path) -> dict[str, Path]:
    """Return {name: weight file} of all tensors in a folder; raises the errors of `tensor_shapes`."""
    return {name: file for file in _weight_files(folder, _index(folder)) for name in _header(file)}


def _headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the header entries of all tensors in a folder's weight files."""
    index = _index(folder)
    tensors: dict[str, dict[str, Any]] = {}
    for file in _weight_files(folder, index):
        header = _header(file)
        if missing := [name for name, part in index.items() if part == file.name and name not in header]:
            message = f"the tensor {missing[0]} is missing, which the index lists"
            raise DamagedFile(message, where=str(file), hint=_FETCH_AGAIN)
        tensors |= header
    return tensors


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """Return one file's header; raise DamagedFile if it is invalid or the file has another size."""
    try:
        with file.open("rb") as raw:
            length = struct.unpack("<Q", raw.read(8))[0]
            header: dict[str, dict[str, Any]] = json.loads(raw.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise DamagedFile("has no valid safetensors header", where=str(file), hint=_FETCH_AGAIN) from error
    if (size := file.stat().st_size) != end:
        message = f"has {size:,} bytes instead of {end:,}, as its header requires"
        raise DamagedFile(message, where=str(file), hint=_FETCH_AGAIN)
    return header


def _index(folder: Path) -> dict[str, str]:
    """Return {tensor: file} for weights in several files; empty for a single file."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return {}
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedFile("is not a valid index of weight files", where=str(index), hint=_FETCH_AGAIN) from error


def _mlp_width(layers: Collection[Linear], hidden: int) -> int:
    """Return the inner width of the MLP: the largest side of a matrix, or that of all experts that a token uses."""
    single = [max(linear.out_features, linear.in_features) for linear in layers if linear.experts == 1]
    # The smaller of the two parameters of experts is the projection out of the MLP, [hidden, width] for each.
    experts = [linear.active * linear.weights // (linear.experts * hidden) for linear in layers if linear.experts > 1]
    return max((*single, min(experts, default=0)), default=hidden)


def _weight_files(folder: Path, index: dict[str, str]) -> list[Path]:
    """Return the files that transformers reads; some repositories hold the same weights again in another layout."""
    if index:
        names = sorted(set(index.values()))
        if missing := [name for name in names if not (folder / name).exists()]:
            message = f"the file {missing[0]} is missing, which the index names"
            raise RecipeError(message, where=str(folder), hint=_FETCH_AGAIN, code="weights-missing")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    return [single] if single.exists() else sorted(folder.glob("*.safetensors"))
