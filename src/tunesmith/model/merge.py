"""A tuned model as one plain transformers folder, for whatever cannot put an adapter on a base."""

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
from tunesmith.tasks.chatml import load_tokenizer


def merge_model(reference: str, out: Path | str) -> Path:
    """Write W + (alpha / r) B A in place of a base and its adapters; return the folder.

    W are the weights in the base's own files, also of an adapter that was trained beside 4 or 8 bits: what is added to
    a rounded W would be rounded with it. The sum is made in fp32 and written in the precision of the base's files.

    Args:
        reference: a tuned model: `run:FOLDER`, `NAME@ALIAS` or an adapter's folder.
        out: a folder that does not exist yet.

    Raises:
        RecipeError: there is no such model, it is whole already, or `out` exists or cannot be made.
    """
    found, folder = resolve(reference), Path(out)
    if found.base is None:
        raise RecipeError("is a whole model, so there is nothing to merge", where=reference)
    if os.path.lexists(folder):
        raise RecipeError("exists already", where=str(folder), hint="name another folder")
    check_writable(folder.parent, hint="name another folder")
    model = open_model(found, ComputeConfig(torch.device("cpu"), torch.float32), merged=True)
    own = AutoConfig.from_pretrained(found.root.path, local_files_only=True, trust_remote_code=False).dtype
    about_adapters = ("base", "base_digest", "quantization")
    with new_folder(folder, merged=reference) as fresh:
        save_model(model.to(own or torch.float32), fresh, base=found.root.reference)
        load_tokenizer(found).hf_tokenizer.save_pretrained(fresh)
        write_json(fresh / CARD, {key: value for key, value in found.card.items() if key not in about_adapters})
        if trained_rows(found):
            write_trained_rows(fresh / TRAINED_ROWS, (), found)
    return folder
