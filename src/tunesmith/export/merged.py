"""The format `merged`: a plain transformers folder, of an adapter merged into its base or of a full model."""

from contextlib import AbstractContextManager, closing
from math import prod
from pathlib import Path

import torch

from tunesmith.architecture.weight_headers import tensor_shapes
from tunesmith.engines.base import Engine
from tunesmith.engines.transformers_folder import TransformersFolder
from tunesmith.export.formats import Options
from tunesmith.export.prompt_defaults import write_prompt_defaults
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.plain_folder import write_plain_model

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def check(model: ModelFolder, options: Options) -> None:
    """Accept every model."""


def bytes_needed(model: ModelFolder, options: Options) -> int:
    """Return the size of the weights, and 10 % for the other files."""
    return bytes_stored(model, 2 if options.type in ("f16", "bf16") else 4)


def bytes_stored(model: ModelFolder, bytes_each: int) -> int:
    """Return the size of a whole model with this many bytes per parameter, and 10 % for the other files."""
    return int(1.1 * bytes_each * sum(map(prod, tensor_shapes(model.root.path).values())))


def build(model: ModelFolder, folder: Path, options: Options) -> str:
    """Write the model to a folder and return the type of its weights."""
    dtype = write_plain_model(model, folder, _DTYPES[options.type] if options.type else None)
    write_prompt_defaults(folder, model)
    return next(name for name, known in _DTYPES.items() if known == dtype)


def require_engine() -> None:
    """Accept every installation: transformers and peft are always installed."""


def open_engine(model: ModelFolder, folder: Path, options: Options) -> AbstractContextManager[Engine]:
    """Open the folder as a user of transformers does."""
    return closing(TransformersFolder(folder))
