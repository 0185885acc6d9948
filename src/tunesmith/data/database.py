"""The SQLite database that the metric `execution` runs queries on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tunesmith.core.errors import DataError
from tunesmith.recipe.schema import Recipe

GENERATED_SHOP = "generated:shop-sql"
DATABASE_COPY = "evaluate.database.kept"
"""The name of the copy in a run's `recipe_files`, whatever the recipe's database is called."""


def database_file(recipe: Recipe, folder: Path) -> Path | None:
    """Return the SQLite file that the recipe names, or None if it names none or a generated one.

    Args:
        folder: what relative paths are relative to.

    Raises:
        DataError: there is no such file.
    """
    name = recipe.evaluate.database
    if name is None or name == GENERATED_SHOP:
        return None
    path = folder / name
    if (kept := folder / DATABASE_COPY).exists():
        return kept
    if not path.exists():
        raise DataError("no such database", where=str(path), hint="evaluate.database is relative to the recipe")
    return path


@contextmanager
def open_database(recipe: Recipe, folder: Path) -> Iterator[Path | None]:
    """Provide the recipe's database; a generated one is in a temporary folder, removed at the end of the block."""
    if recipe.evaluate.database != GENERATED_SHOP:
        yield database_file(recipe, folder)
        return
    from tunesmith.demo.shop import write_database

    with TemporaryDirectory() as place:
        path = Path(place) / "shop.sqlite"
        write_database(path)
        yield path
