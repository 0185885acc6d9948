"""Copy the recipe's metrics and database into the run, so that the run can be evaluated after it was moved."""

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
    """Copy the recipe's custom metrics, with the modules that they import, and its database into the run.

    Copies that are up to date stay. If the recipe's folder is gone, nothing is copied.

    Raises:
        DataError: the database does not exist.
        DoesNotFit: the disk is full.
    """
    if run.recipe_folder == run.recipe_files:
        return
    for source, name in _files_to_copy(recipe, run.recipe_folder):
        target = run.recipe_files / name
        if not _is_up_to_date(source, target):
            with translate_enospc(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                # Set the times last: they mark the copy as complete.
                os.utime(target, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))


def _files_to_copy(recipe: Recipe, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file to copy, and its name in `recipe_files`."""
    metrics = (*recipe.evaluate.metrics, *recipe.train.valid_metrics)
    for metric in metrics:
        for file in source_files(metric, folder):
            yield file, file.relative_to(folder).as_posix()
    if "execution" in metrics and (database := database_file(recipe, folder)) is not None:
        yield database, DATABASE_COPY


def _is_up_to_date(source: Path, target: Path) -> bool:
    if not target.exists():
        return False
    original, copy = source.stat(), target.stat()
    return (original.st_size, original.st_mtime_ns) == (copy.st_size, copy.st_mtime_ns)
