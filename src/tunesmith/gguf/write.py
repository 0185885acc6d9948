"""Write a transformers model as one GGUF file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.core.errors import RecipeError
from tunesmith.core.suggest import did_you_mean
from tunesmith.gguf.architectures import find_architecture, read_model_config
from tunesmith.gguf.gguf_file import general_metadata, refuse_existing, write_file
from tunesmith.gguf.hyperparameters import hyperparameters
from tunesmith.gguf.model_name import name_in_file
from tunesmith.gguf.rope import describe_rope
from tunesmith.gguf.tensor_types import EMBEDDING, GGUF_TYPES
from tunesmith.gguf.tensors import Tensor, computed_tensor, list_tensors
from tunesmith.gguf.vocabulary import describe_vocabulary


def write_gguf(folder: Path, out: Path, *, type: str, metadata: Mapping[str, Any] = {}) -> list[str]:
    """Write the model of a plain transformers folder, with its tokenizer and chat template, to a GGUF file.

    Args:
        folder: a local folder, such as an export to `merged`.
        out: the file to create.
        type: one of `GGUF_TYPES`.
        metadata: further keys, such as `general.name` and `general.license`.

    Returns:
        Warnings: where llama.cpp will behave differently from transformers.

    Raises:
        RecipeError: the file exists, the type is unknown, the model cannot be written, or a weight is not finite or
            too large for the type. Nothing is left of the file.
        DamagedFile: the folder's weights are damaged.
        DoesNotFit: the disk is full.
    """
    if type not in GGUF_TYPES:
        hint = did_you_mean(type, GGUF_TYPES)
        raise RecipeError(f"there is no GGUF type `{type}`", hint=hint, code="unknown-gguf-type")
    refuse_existing(out)
    file_type = GGUF_TYPES[type]
    model = describe_model(folder)
    written = {**general_metadata(folder, file_type), **model.metadata, **metadata}
    written["general.name"] = name_in_file(written["general.name"], strips_like_phi3=model.strips_like_phi3)
    write_file(out, model.architecture, written, model.tensors, file_type)
    return model.warnings


class Description(NamedTuple):
    """Everything about a model except its weights, and warnings for the user."""

    architecture: str
    metadata: dict[str, Any]
    tensors: list[Tensor]
    warnings: list[str]
    strips_like_phi3: bool


def describe_model(folder: Path) -> Description:
    """Return the metadata and the tensors of a model. Only the headers of its weights are read.

    Raises:
        RecipeError: the model cannot be written. Only its weights can still be refused later.
    """
    config = read_model_config(folder)
    architecture = find_architecture(config, folder)
    rope = describe_rope(config, architecture.scalings, where=folder / "config.json")
    tensors = list_tensors(folder, config, architecture)
    tensors += [computed_tensor(name, name, values) for name, values in rope.tensors.items()]
    rows = next(tensor.shape[0] for tensor in tensors if tensor.name == EMBEDDING)
    shape, shape_warnings = hyperparameters(config, architecture, vocabulary=rows)
    vocabulary = describe_vocabulary(folder, rows=rows)
    metadata = {f"{architecture.name}.{key}": value for key, value in (shape | rope.metadata).items()}
    return Description(
        architecture.name,
        metadata | vocabulary.metadata,
        tensors,
        [*shape_warnings, *vocabulary.warnings],
        vocabulary.strips_like_phi3,
    )
