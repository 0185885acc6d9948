"""The format `adapter`: a PEFT folder that peft, vLLM and llama.cpp read alike.

Readers differ in the keys of `adapter_config.json` that they know. Those without `use_rslora` scale by alpha / r, not
by alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732), and give no error. Older versions of peft refuse keys of
newer ones. So only keys that differ from peft's defaults are written, and rsLoRA becomes alpha * sqrt(r).
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

from peft import LoraConfig

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import read_json, write_json
from tunesmith.data.trained_rows import TRAINED_ROWS, trained_rows, write_trained_rows
from tunesmith.engines.base import Engine
from tunesmith.engines.transformers_folder import TransformersFolder
from tunesmith.export.formats import Options
from tunesmith.export.prompt_defaults import write_prompt_defaults
from tunesmith.fetch.model_folder import model_files
from tunesmith.fetch.reference import CARD, ModelFolder, base_card, name_for_peft
from tunesmith.model.portable import make_portable
from tunesmith.recipe.export import READERS
from tunesmith.tasks.model_tokenizer import load_tokenizer

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The keys that every reader needs or expects, whatever peft's defaults are.
_ALWAYS = ("peft_type", "task_type", "r", "lora_alpha", "target_modules", "bias", "inference_mode")
# The keys that all readers understand, or whose value only matters in training.
_UNDERSTOOD = frozenset({*_ALWAYS, "lora_dropout", "exclude_modules", "use_rslora"})
_ABOUT_PEFT = frozenset({"auto_mapping", "peft_version", "base_model_name_or_path", "revision"})


def check(model: ModelFolder, options: Options) -> None:
    """Raise RecipeError if the model is not an adapter on a plain base, or if a reader cannot take it."""
    where, merge = model.reference, "use --to merged"
    if model.base is None:
        message = "is a full model, not an adapter"
        raise RecipeError(message, where=where, hint=merge, code="not-an-adapter")
    check_base(model.base, options.repo, where=where)
    strict = [reader for reader in options.readers or READERS if reader != "peft"]
    config = read_json(model.path / _CONFIG)
    only_peft = sorted(name for name, _ in _not_default(config) if name not in _UNDERSTOOD)
    if strict and only_peft:
        message = f"{' and '.join(strict)} cannot read `{only_peft[0]}` of this adapter"
        hint = f"{merge}, or --readers peft for an adapter that only peft opens"
        raise RecipeError(message, where=where, hint=hint, code="adapter-unsupported")


def check_base(base: ModelFolder, repo: str | None, *, where: str) -> None:
    """Raise RecipeError if the readers of an adapter cannot open its base: an adapter too, or not on the hub."""
    message = None
    if base.base is not None:
        message = "is an adapter on another adapter, which no program loads as one"
    elif repo is not None and (base.pin is None or base.pin.kind != "hub"):
        message = f"its base `{base.reference}` is not on the hub, where readers of {repo} would look"
    if message:
        raise RecipeError(message, where=where, hint="use --to merged", code="adapter-unsupported")


def bytes_needed(model: ModelFolder, options: Options) -> int:
    """Return the size of the adapter's files."""
    return sum(path.stat().st_size for path in model_files(model.path))


def build(model: ModelFolder, folder: Path, options: Options) -> str:
    """Write the adapter, its tokenizer and its card to a folder; return the type of its weights."""
    assert model.base is not None
    write_json(folder / _CONFIG, portable_config(read_json(model.path / _CONFIG), model.base))
    shutil.copyfile(model.path / _WEIGHTS, folder / _WEIGHTS)
    load_tokenizer(model).hf_tokenizer.save_pretrained(folder)
    make_portable(folder)
    write_json(folder / CARD, {**model.card, **base_card(model.base, folder)})
    if trained_rows(model):
        write_trained_rows(folder / TRAINED_ROWS, (), model)
    write_prompt_defaults(folder, model)
    return "f32"


def require_engine() -> None:
    """Accept every installation: transformers and peft are always installed."""


def open_engine(model: ModelFolder, folder: Path, options: Options) -> AbstractContextManager[Engine]:
    """Open the adapter on its base as a user of peft does."""
    return closing(TransformersFolder(folder))


def portable_config(config: dict[str, Any], base: ModelFolder) -> dict[str, Any]:
    """Return the smallest configuration that all readers understand alike.

    The base is a name on the hub with its revision, or a folder of this machine.
    """
    kept = {name: config[name] for name in _ALWAYS if name in config} | dict(_not_default(config))
    if kept.pop("use_rslora", False):
        kept |= _plain_scaling(kept)
    name, revision = name_for_peft(base)
    named = {"base_model_name_or_path": name, **({"revision": revision} if revision else {})}
    return {**named, **{name: kept[name] for name in sorted(kept)}}


def _plain_scaling(config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that scale as an rsLoRA configuration does: alpha * sqrt(r) / r is alpha / sqrt(r)."""
    ranks, alphas = config.get("rank_pattern", {}), config.get("alpha_pattern", {})
    rank, alpha = config["r"], config["lora_alpha"]
    scaled = {
        name: alphas.get(name, alpha) * math.sqrt(ranks.get(name, rank)) for name in dict.fromkeys([*ranks, *alphas])
    }
    return {"lora_alpha": alpha * math.sqrt(rank), **({"alpha_pattern": scaled} if scaled else {})}


def _not_default(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a configuration that differ from peft's defaults; keys that this peft lacks are kept."""
    defaults = LoraConfig().to_dict()
    for name, value in config.items():
        if name not in _ABOUT_PEFT and name not in ("r", "lora_alpha") and value != defaults.get(name):
            yield name, value
