"""A custom metric of this recipe: whether SQLite can parse an answer."""

import sqlite3
from collections.abc import Sequence


def parses(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return 1.0 for every answer that SQLite parses, whatever tables it names, else 0.0."""
    connection = sqlite3.connect(":memory:")
    try:
        return [float(_is_sql(connection, prediction)) for prediction in predictions]
    finally:
        connection.close()


def _is_sql(connection: sqlite3.Connection, text: str) -> bool:
    try:
        connection.execute(f"EXPLAIN {text}")
    except sqlite3.OperationalError as error:
        # The database is empty: an error about a missing table or column means that the text was parsed.
        return str(error).startswith("no such ") and not str(error).startswith("no such function")
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return False
    return bool(text.strip())
