"""Convert a `.gguf` file to a transformers folder in the cache; weights are dequantized once."""

import contextlib
import io
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST, digest_file, digest_of, new_folder, read_json
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.progress import log
from tunesmith.core.user_folders import cache_root
from tunesmith.fetch.pretokenizer import PRE_TOKENIZERS, set_pre_tokenizer, splits_as

CONVERSION = 2
"""The version of the conversion; a change of the weights or the token ids that it gives must raise it.

Version 1 lost the pre-tokenizer that a file names.
"""


def gguf_folder(file: Path) -> Path:
    """Return a folder with the weights of the file in fp32, its tokenizer and its chat template.

    Raises:
        RecipeError: transformers cannot read the file, or its pre-tokenizer is not known.
    """
    return convert(file, cache_root() / "models" / f"gguf-{digest_file(file)[:16]}")


def converted_folder(folder: Path) -> Path:
    """Return the folder of this version of the conversion: `folder` with the version added to its name."""
    return folder.with_name(f"{folder.name}-c{CONVERSION}")


def converted_digest(file_digest: str, version: int = CONVERSION) -> str:
    """Return the digest of the model that a version of the conversion makes of a file."""
    return file_digest if version == 1 else digest_of([file_digest, version])


def former_digests(folder: Path) -> list[str]:
    """Return the digests that earlier versions gave the model of a converted folder; none for another folder."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
    file_digest = manifest.get("gguf")
    return [converted_digest(file_digest, version) for version in range(1, CONVERSION)] if file_digest else []


def convert(file: Path, folder: Path) -> Path:
    """Convert a `.gguf` file to a transformers model, unless that is done, and return its `converted_folder`.

    Raises:
        RecipeError: transformers cannot read the file, or its pre-tokenizer is not known.
    """
    folder = converted_folder(folder)
    if (folder / MANIFEST).exists():
        return folder
    with exclusive_lock(folder.with_name(f"{folder.name}.lock"), wait=True):
        if not (folder / MANIFEST).exists():  # another process may have written it in the meantime
            log(f"converting {file.name} to fp32 (only once)")
            digest = digest_file(file)
            with new_folder(folder, source=converted_digest(digest), gguf=digest) as fresh:
                _write_model(file, fresh)
    return folder


def _write_model(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        name = _pre_tokenizer_name(file)
        _read_tokenizer(file, name).save_pretrained(folder)
        with contextlib.redirect_stderr(io.StringIO()):  # hide a progress bar that has no option
            settings = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
            model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, **settings)
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
    if name is not None:
        _check_splitting(file, folder, name)


def _read_tokenizer(file: Path, name: str | None) -> Any:
    """Return the tokenizer of a file with its pre-tokenizer, of which transformers knows only some."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder, adds_bos = str(file.parent), {"add_bos_token": True} if name and PRE_TOKENIZERS[name].adds_bos else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name, **adds_bos)  # unless the file sets it
    if name is None:
        return tokenizer
    set_pre_tokenizer(tokenizer.backend_tokenizer, name)
    # The class of an architecture puts its own pre-tokenizer into the tokenizers that it opens.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        chat_template=tokenizer.chat_template,
        **tokenizer.special_tokens_map,
    )


def _check_splitting(file: Path, folder: Path, name: str) -> None:
    """Raise RecipeError if transformers gives the tokenizer in `folder` another pre-tokenizer, that of its class."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not splits_as(tokenizer.backend_tokenizer, name):
        message = f"transformers cannot split texts by `{name}`, which the file names, in this architecture"
        hint = "use the model's own folder or its name on the hub"
        raise RecipeError(message, where=str(file), hint=hint, code="unknown-pre-tokenizer")


def _pre_tokenizer_name(file: Path) -> str | None:
    """Return the pre-tokenizer that a file names; None if its kind of tokenizer has none.

    llama.cpp splits by `default` if the file names none. This is wrong for most models, but the model's own is lost.
    """
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    kind, name = (
        fields[key].contents() if (key := f"tokenizer.ggml.{part}") in fields else None for part in ("model", "pre")
    )
    if kind != "gpt2":
        return None
    if name is None:
        log(f"warning: {file.name} names no pre-tokenizer; texts are split by `default`, as llama.cpp splits them")
        return "default"
    if name not in PRE_TOKENIZERS:
        message = f"its pre-tokenizer `{name}` is not known, so its token ids would be others than in training"
        hint = "use the model's own folder or its name on the hub"
        raise RecipeError(message, where=str(file), hint=hint, code="unknown-pre-tokenizer")
    return str(name)
