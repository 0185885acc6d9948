"""Convert a `.gguf` file to a transformers folder in the cache; weights are dequantized once."""

import contextlib
import io
from pathlib import Path

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST, digest_file, new_folder
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.progress import log
from tunesmith.core.user_folders import cache_root


def gguf_folder(file: Path) -> Path:
    """Return a folder with the weights of the file in fp32, its tokenizer and its chat template.

    Raises:
        RecipeError: transformers cannot read the file.
    """
    return convert(file, cache_root() / "models" / f"gguf-{digest_file(file)[:16]}")


def convert(file: Path, folder: Path) -> Path:
    """Convert a `.gguf` file to a transformers model in `folder` and return the folder; skip a finished conversion."""
    if (folder / MANIFEST).exists():
        return folder
    with exclusive_lock(folder.with_name(f"{folder.name}.lock"), wait=True):
        if not (folder / MANIFEST).exists():  # another process may have written it in the meantime
            log(f"converting {file.name} to fp32 (only once)")
            with new_folder(folder, source=digest_file(file)) as fresh:
                _write_model(file, fresh)
    return folder


def _write_model(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    parent, name = str(file.parent), file.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name)
        with contextlib.redirect_stderr(io.StringIO()):  # hide a progress bar that has no option
            settings = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
            model = AutoModelForCausalLM.from_pretrained(parent, gguf_file=name, **settings)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        message = f"transformers cannot read this file: {str(error).splitlines()[0]}"
        hint = "use a file of an architecture that transformers can read, or another format"
        raise RecipeError(message, where=str(file), hint=hint, code="unreadable-model") from error
    # The weights are in fp32 now, but transformers refuses to save a model with `quantization_config`.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.config.__dict__.pop("_name_or_path", None)
    model.generation_config = GenerationConfig(eos_token_id=model.config.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
