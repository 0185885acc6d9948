"""Find or generate the database for the metric `execution`, and copy the files that a recipe names into the run.

The run can then be evaluated after it was moved.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tunesmith.core.errors import DataError
from tunesmith.core.files import translate_enospc
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import source_files

GENERATED_SHOP = "generated:shop-sql"
DATABASE_COPY = "evaluate.database.kept"
"""The name of the copy in a run's `recipe_files`; it does not depend on the name in the recipe."""


def database_file(recipe: Recipe, folder: Path) -> Path | None:
    """Return the recipe's SQLite file; None if the recipe has no database or a generated one.

    Args:
        folder: the folder that relative paths start from, or a run's `recipe_files`.

    Raises:
        DataError: there is no such file.
    """
    name = recipe.evaluate.database
    if name is None or name == GENERATED_SHOP:
        return None
    path = folder / name
    if (copy := folder / DATABASE_COPY).exists():
        return copy
    if not path.exists():
        hint = "evaluate.database is relative to the recipe"
        raise DataError("there is no such database", where=str(path), hint=hint, code="not-found")
    return path


@contextmanager
def open_database(recipe: Recipe, folder: Path) -> Iterator[Path | None]:
    """Yield the path of the recipe's database, or None. A generated one is temporary and is deleted after the block."""
    if recipe.evaluate.database != GENERATED_SHOP:
        yield database_file(recipe, folder)
        return
    from tunesmith.demo.shop import write_database

    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "shop.sqlite"
        write_database(path)
        yield path


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
    metrics = (*recipe.evaluate.all_metrics, *recipe.train.valid_metrics)
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
