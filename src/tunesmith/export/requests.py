"""The exports that a recipe asks for, checked before anything is trained."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST
from tunesmith.core.rundir import RunDir
from tunesmith.core.user_folders import check_writable
from tunesmith.engines.llama_cpp import llama_cpp_version
from tunesmith.export.formats import Options, format_of
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.recipe.export import READERS, Export, GgufExport, MergedExport
from tunesmith.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """An entry of a recipe's `export`.

    Attributes:
        key: its key in the recipe.
        folder: the folder to create.
        is_in_run: whether this is the default folder, whose content may be replaced.
    """

    key: str
    to: str
    options: Options
    folder: Path
    is_in_run: bool


def requests_of(recipe: Recipe, run: RunDir) -> Iterator[ExportRequest]:
    """Yield the exports of a recipe, in order; paths are relative to its folder."""
    for index, entry in enumerate(recipe.export or ()):
        default = run.exported(entry.folder_name)
        folder = default if entry.out is None else run.recipe_folder / os.path.expanduser(entry.out)
        yield ExportRequest(f"export.{index}", entry.to, _options(entry), folder, entry.out is None)


def check_requests(recipe: Recipe, run: RunDir) -> None:
    """Check the exports of a recipe before anything is computed.

    Raises:
        RecipeError: an option is wrong, a folder cannot be written or has something else, or the program is missing by
            which a format is proved.
    """
    for request in requests_of(recipe, run):
        format_of(request.to, request.options)
        if request.to == "gguf":
            llama_cpp_version()
        if request.is_in_run:
            continue
        hint = f"change {request.key}.out"
        check_writable(request.folder.parent, hint=hint)
        if os.path.lexists(request.folder) and not (request.folder / MANIFEST).exists():
            raise RecipeError("exists already", where=str(request.folder), hint=hint, code="exists")


def check_base_for_exports(recipe: Recipe, base: ModelFolder) -> None:
    """Raise RecipeError if a model of this architecture cannot be written in a format of the recipe."""
    if any(isinstance(entry, GgufExport) for entry in recipe.export or ()):
        from tunesmith.gguf.architectures import find_architecture, read_model_config  # imports torch

        find_architecture(read_model_config(base.root.path), base.root.path)


def _options(export: Export) -> Options:
    if isinstance(export, MergedExport):
        return Options(type=export.type, repo=export.repo)
    if isinstance(export, GgufExport):
        return Options(
            type=export.type, repo=export.repo, adapter_only=export.adapter_only, quantize_with=export.quantize_with
        )
    return Options(readers=None if export.readers == READERS else export.readers, repo=export.repo)
