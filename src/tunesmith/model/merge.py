"""Merge an adapter into its base and write a plain transformers folder, for programs that cannot load adapters."""

import os
from pathlib import Path

import torch
from transformers import AutoConfig

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import new_folder, write_json
from tunesmith.core.user_folders import check_writable
from tunesmith.data.trained_rows import TRAINED_ROWS, trained_rows, write_trained_rows
from tunesmith.fetch.reference import CARD, resolve
from tunesmith.model.adapters import open_model, save_model
from tunesmith.model.load import ComputeConfig
from tunesmith.model.portable import make_portable
from tunesmith.tasks.model_tokenizer import load_tokenizer


def merge_model(reference: str, out: Path | str) -> Path:
    """Write the merged weights W + (alpha / r) B A of a tuned model to a new folder, and return the folder.

    W is read from the base's files, even if the adapter was trained on a quantized W: a sum with quantized weights
    would have to be rounded to them. The sum is computed in fp32 and stored in the dtype of the base's files.

    Args:
        reference: the tuned model: `run:FOLDER`, `NAME@ALIAS` or an adapter's folder.
        out: the folder to create.

    Raises:
        RecipeError: there is no such model, it is not an adapter, or `out` exists or cannot be created.
    """
    tuned, folder = resolve(reference), Path(out)
    if tuned.base is None:
        raise RecipeError("is a full model, so there is nothing to merge", where=reference, code="not-an-adapter")
    if os.path.lexists(folder):
        raise RecipeError("exists already", where=str(folder), hint="name another folder", code="exists")
    check_writable(folder.parent, hint="name another folder")
    model = open_model(tuned, ComputeConfig(torch.device("cpu"), torch.float32), merged=True)
    own = AutoConfig.from_pretrained(tuned.root.path, local_files_only=True, trust_remote_code=False).dtype
    adapter_keys = ("base", "base_digest", "quantization")
    with new_folder(folder, merged=reference) as new:
        save_model(model.to(own or torch.float32), new, base=tuned.root.reference)
        load_tokenizer(tuned).hf_tokenizer.save_pretrained(new)
        make_portable(new)
        write_json(new / CARD, {key: value for key, value in tuned.card.items() if key not in adapter_keys})
        if trained_rows(tuned):
            write_trained_rows(new / TRAINED_ROWS, (), tuned)
    return folder
