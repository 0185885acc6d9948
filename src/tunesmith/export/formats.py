"""The formats of an export, one row each. Imports no torch, so that options can be checked quickly."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.recipe.export import READERS, GgufTypeName, PlainType


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of an export.

    Attributes:
        name: its name on the command line.
        title: its contents.
        description: its contents and its readers, for the card.
        library: the library that the hub names for it.
        relation: how the hub names its relation to the base.
        module: has its functions `check`, `require_engine`, `bytes_needed`, `build` and `open_engine`; imported when it
            is used.
        types: the types of its weights; empty if it stores those of the model.
        options: the options that have an effect, in addition to `type`.
    """

    name: str
    title: str
    description: str
    library: str
    relation: str
    module: str
    types: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def load(self) -> ModuleType:
        """Import the module of the format."""
        return importlib.import_module(self.module)


FORMATS: Mapping[str, Format] = {
    row.name: row
    for row in (
        Format(
            name="merged",
            title="transformers folder",
            description="a folder of transformers",
            library="transformers",
            relation="finetune",
            module="tunesmith.export.merged",
            types=get_args(PlainType),
        ),
        Format(
            name="adapter",
            title="PEFT adapter",
            description="an adapter of PEFT, which needs its base",
            library="peft",
            relation="adapter",
            module="tunesmith.export.adapter",
            options=("readers",),
        ),
        Format(
            name="gguf",
            title="GGUF file",
            description="a GGUF file, for llama.cpp and programs that use it",
            library="gguf",
            relation="quantized",
            module="tunesmith.export.gguf",
            types=get_args(GgufTypeName),
            options=("adapter_only", "quantize_with"),
        ),
    )
}


HUB = "hub"
"""The name for an adapter if its base is on the hub, else for a merged model, in a repository of the hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to export a model; each format uses some of the options.

    Attributes:
        type: the type of the weights; None for that of the model.
        readers: the programs that an adapter must work in; None for all.
        adapter_only: write the adapter of a `gguf` export without its base.
        repo: the repository on the hub to upload the folder to; None to upload nothing.
        quantize_with: the path of llama-quantize, for types that the package `gguf` cannot write.
    """

    type: str | None = None
    readers: tuple[str, ...] | None = None
    repo: str | None = None
    adapter_only: bool = False
    quantize_with: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the options that are set, as JSON; of the program only its name, because exports are published."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["quantize_with"] = self.quantize_with and Path(self.quantize_with).name
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value}


def format_of(name: str, options: Options) -> Format:
    """Return the format of this name; raise RecipeError if there is none, or if an option has no effect on it."""
    if name not in FORMATS:
        hint = f"use {', '.join(FORMATS)}"
        raise RecipeError(f"there is no format `{name}`", where="--to", hint=hint, code="wrong-value")
    row = FORMATS[name]
    if options.type is not None and options.type not in row.types:
        hint = f"use {', '.join(row.types)}" if row.types else "leave --type out"
        raise RecipeError(f"`{name}` has no type `{options.type}`", where="--type", hint=hint, code="wrong-value")
    for option in options.to_json():
        if option not in ("type", "repo", *row.options):
            message = f"the option `{option}` has no effect on the format `{name}`"
            raise RecipeError(message, where=_option_flag(option), hint="leave it out", code="no-effect")
    if unknown := sorted(set(options.readers or ()) - set(READERS)):
        hint = f"use {', '.join(READERS)}"
        raise RecipeError(f"there is no reader `{unknown[0]}`", where="--readers", hint=hint, code="wrong-value")
    return row


def _option_flag(option: str) -> str:
    """Return the flag of an option on the command line."""
    return f"--{option.replace('_', '-')}"


def file_stem(model: ModelFolder) -> str:
    """Return a name for a model's file: that in the registry or of its run, else that of its folder."""
    pin = model.pin
    is_named = pin is not None and pin.kind in ("registry", "hub", "pypi")
    name = pin.at.partition("@")[0] if pin is not None and is_named else model.card.get("name") or model.path.name
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(name).name).strip(".-") or "model"
