"""Where the valid and test rows come from: fractions of the rows of `data.source`, or sources of their own."""

from tunesmith.core.rundir import HELD_OUT
from tunesmith.recipe.data_source import Source, Sources
from tunesmith.recipe.schema import DataBase


def own_source(data: DataBase, split: str) -> Sources | None:
    """Return the source of the `valid` or `test` rows; None if they are rows of `data.source`."""
    value = {"valid": data.valid, "test": data.test}[split]
    return None if isinstance(value, float) else value


def all_sources(data: DataBase) -> Sources:
    """Return `data.source`, and the sources that hold only valid or only test rows."""
    own = [found for split in HELD_OUT if (found := own_source(data, split)) is not None]
    listed = [found if isinstance(found, tuple) else (found,) for found in (data.source, *own)]
    return tuple(source for sources in listed for source in sources) if own else data.source


def listed_sources(data: DataBase) -> tuple[Source, ...]:
    """Return the sources of `data.source` as a tuple."""
    return data.source if isinstance(data.source, tuple) else (data.source,)


def fraction(data: DataBase, split: str) -> float:
    """Return the fraction of the rows of `data.source` that are `valid` or `test` rows."""
    value = {"valid": data.valid, "test": data.test}[split]
    default = {"valid": data.split.valid, "test": data.split.test}[split]
    return default if value is None else value if isinstance(value, float) else 0.0


def has_rows(data: DataBase, split: str) -> bool:
    """Return whether the recipe sets `valid` or `test` rows aside, unless a column decides that."""
    return own_source(data, split) is not None or fraction(data, split) > 0
