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
from tunesmith.gguf.quantizer import find_quantizer
from tunesmith.recipe.export import READERS, AdapterExport, Export, GgufExport, MergedExport
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
        yield ExportRequest(f"export.{index}", entry.to, _options(entry, run.recipe_folder), folder, entry.out is None)


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
        if request.options.quantize_with:
            find_quantizer(request.options.quantize_with)
        if request.is_in_run:
            continue
        hint = f"change {request.key}.out"
        check_writable(request.folder.parent, hint=hint)
        # Only a run that has trained its model can have exported it, and continue here.
        is_ours = run.manifest("train") is not None and (request.folder / MANIFEST).exists()
        if os.path.lexists(request.folder) and not is_ours:
            raise RecipeError("exists already", where=str(request.folder), hint=hint, code="exists")


def check_base_for_exports(recipe: Recipe, base: ModelFolder) -> None:
    """Raise RecipeError if what is trained on a base cannot be written in a format of the recipe."""
    for index, entry in enumerate(recipe.export or ()):
        if isinstance(entry, GgufExport):
            from tunesmith.export.gguf import require_describable  # imports torch

            require_describable(base.root.path)
        if isinstance(entry, AdapterExport) or (isinstance(entry, GgufExport) and entry.adapter_only):
            from tunesmith.export.adapter import check_base  # imports torch

            check_base(base, entry.repo if entry.to == "adapter" else None, where=f"export.{index}")


def _program(given: str | None, folder: Path) -> str | None:
    """Return a program of a recipe: a name on the PATH, or a path relative to the recipe's folder."""
    return str(folder / os.path.expanduser(given)) if given and os.sep in given else given


def _options(export: Export, folder: Path) -> Options:
    if isinstance(export, MergedExport):
        return Options(type=export.type, repo=export.repo)
    if isinstance(export, GgufExport):
        return Options(
            type=export.type,
            repo=export.repo,
            adapter_only=export.adapter_only,
            quantize_with=_program(export.quantize_with, folder),
        )
    return Options(readers=None if export.readers == READERS else export.readers, repo=export.repo)
