"""Write any model as a plain transformers folder: adapters merged into their base, for programs that load neither."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_json
from tunesmith.data.trained_rows import TRAINED_ROWS, trained_rows, write_trained_rows
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.model.adapters import open_model, save_model
from tunesmith.model.load import ComputeConfig
from tunesmith.model.portable import make_portable
from tunesmith.tasks.model_tokenizer import load_tokenizer

_OF_ADAPTERS = ("base", "base_pin", "base_digest", "quantization")  # in the card of an adapter, not of a merged model


def write_plain_model(model: ModelFolder, folder: Path, dtype: torch.dtype | None = None) -> torch.dtype:
    """Write the merged weights W + (alpha / r) B A of a model to an existing folder; return their dtype.

    W is read from the base's files, even if the adapter was trained on a quantized W: a sum with quantized weights
    would have to be rounded to them. The sum is computed in fp32. A full model is written as it is.

    Args:
        dtype: the dtype to store the weights in; default that of the files of the model or of its root.

    Raises:
        RecipeError: a weight is too large for fp16.
    """
    root = model.root
    own = AutoConfig.from_pretrained(root.path, local_files_only=True, trust_remote_code=False).dtype or torch.float32
    dtype = dtype or own
    opened = open_model(model, ComputeConfig(torch.device("cpu"), torch.float32), merged=True)
    save_model(_as_dtype(opened, dtype, model.reference), folder, base=root.reference)
    load_tokenizer(model).hf_tokenizer.save_pretrained(folder)
    make_portable(folder)
    write_json(folder / CARD, _full_model_card(model.card))
    if trained_rows(model):
        write_trained_rows(folder / TRAINED_ROWS, (), model)
    return dtype


def _full_model_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card of a model without what describes the base of an adapter."""
    return {key: value for key, value in card.items() if key not in _OF_ADAPTERS}


def _as_dtype(model: Any, dtype: torch.dtype, name: str) -> Any:
    """Convert the weights of a model in place and return it; raise RecipeError if fp16 cannot hold one of them."""
    largest = torch.finfo(dtype).max
    for weight_name, weight in model.named_parameters():
        if weight.numel() and not weight.detach().abs().max() <= largest:
            message = f"the weight {weight_name} has values beyond the range of {str(dtype).removeprefix('torch.')}"
            raise RecipeError(message, where=name, hint="use --type bf16 or f32", code="precision-unsupported")
    return model.to(dtype)
