"""Copies of what evaluation needs from the recipe's folder, so that a run can be judged after it was moved."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tunesmith.core.files import translate_enospc
from tunesmith.core.rundir import RunDir
from tunesmith.data.database import DATABASE_COPY, database_file
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import source_files


def copy_recipe_files(recipe: Recipe, run: RunDir) -> None:
    """Copy the recipe's own metrics, with the modules that they import, and its database into the run.

    Copies that are up to date stay, and if the recipe's folder is gone, nothing is copied.

    Raises:
        DataError: the database is not there.
        DoesNotFit: the disk is full.
    """
    if run.recipe_folder == run.recipe_files:
        return
    for source, name in _wanted(recipe, run.recipe_folder):
        target = run.recipe_files / name
        if not _is_copy(source, target):
            with translate_enospc(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                os.utime(
                    target, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns)
                )  # last, because it marks the copy as whole


def _wanted(recipe: Recipe, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file to copy and its name below `recipe_files`."""
    metrics = (*recipe.evaluate.metrics, *recipe.train.valid_metrics)
    for metric in metrics:
        for file in source_files(metric, folder):
            yield file, file.relative_to(folder).as_posix()
    if "execution" in metrics and (database := database_file(recipe, folder)) is not None:
        yield database, DATABASE_COPY


def _is_copy(source: Path, target: Path) -> bool:
    if not target.exists():
        return False
    one, other = source.stat(), target.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
