"""Store the ids of the rows that a model was trained on, so that models based on it are not evaluated on them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_chunks
from tunesmith.core.rundir import HELD_OUT
from tunesmith.data.spool import SpooledRow
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.columns import message_columns, prompt_columns, response_columns, tools_column
from tunesmith.recipe.schema import Data, Recipe
from tunesmith.tasks.recorded_data import recorded_data

TRAINED_ROWS = "trained_rows.bin"
"""The file of sorted row ids, 8 bytes each, in `prepare/` and with the weights of every model trained on them."""

_ID_BYTES = 8


def write_trained_rows(path: Path, ids: Iterable[str], base: ModelFolder) -> None:
    """Write the ids of the training rows, and of those that the base was trained on before."""
    write_chunks(path, sorted(set(map(bytes.fromhex, ids)) | trained_rows(base)))


def trained_rows(model: ModelFolder | None) -> frozenset[bytes]:
    """Return the ids of all rows that a model and its bases are known to have been trained on."""
    ids: set[bytes] = set()
    while model is not None:
        file = model.path / TRAINED_ROWS
        content = file.read_bytes() if file.exists() else b""
        ids.update(content[i : i + _ID_BYTES] for i in range(0, len(content), _ID_BYTES))
        model = model.base
    return frozenset(ids)


def count_seen_rows(used: Mapping[str, Sequence[SpooledRow]], base: ModelFolder | None) -> dict[str, Any]:
    """Return {split: the number of held-out rows that the base was trained on, first: the first of them}."""
    trained = trained_rows(base)
    counts: dict[str, Any] = {}
    for split in HELD_OUT:
        seen = [row.entry.where for row in used[split] if row.entry.id and bytes.fromhex(row.entry.id) in trained]
        counts[split] = len(seen)
        if seen:
            counts.setdefault("first", seen[0])
    return counts


def seen_rows_warning(seen: Mapping[str, Any], recipe: Recipe) -> str | None:
    """Return a warning with the number of held-out rows that the base was trained on; None if there are none."""
    counts = [f"{seen[split]:,} {split} rows" for split in HELD_OUT if seen[split]]
    if not counts:
        return None
    return (
        f"the base `{recipe.model.base}` was trained on {' and '.join(counts)} (first {seen['first']}), so its score "
        "on them proves nothing; use the same seed and data.split as for the base"
    )


def unknown_overlap_warning(recipe: Recipe, base: ModelFolder | None) -> str | None:
    """Return a warning that the base's training rows cannot be recognized if it used other columns; else None."""
    if base is None or not trained_rows(base):
        return None
    with suppress(RecipeError):  # of a record that another version wrote
        data = recorded_data(base)
        if data is not None and _columns(data) != _columns(recipe.data):
            problem = f"the base `{recipe.model.base}` was trained on other columns"
            return f"{problem}, so it is unknown which valid and test rows it has seen"
    return None


def _columns(data: Data) -> tuple[tuple[str, ...], ...]:
    return prompt_columns(data), response_columns(data), message_columns(data), (tools_column(data) or "",)
