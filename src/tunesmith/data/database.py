"""Find or generate the SQLite database for the metric `execution`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tunesmith.core.errors import DataError
from tunesmith.recipe.schema import Recipe

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
