"""Call every metric of a recipe on the references before training, to find errors early.

A metric may reject a reference, raise, or return NaN or too few values. `plan` spends a few seconds on each metric, and
`prepare` calls the metrics that can reject a reference on all of them.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.rundir import RunDir
from tunesmith.data.dataset import UsedRows
from tunesmith.data.recipe_files import open_database
from tunesmith.data.row_columns import Columns, row_columns, source_columns
from tunesmith.data.split import choose_by_hash
from tunesmith.data.text_file import shorten
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import CustomMetric, custom_metrics
from tunesmith.scoring.metrics import answer_metrics, score
from tunesmith.tasks.base import Task
from tunesmith.tasks.references import scored_reference

# The built-in metrics that reject some references. The others accept any text, so a few rows suffice to test them.
_CAN_REJECT = ("json_field_f1", "tool_call", "tool_call_name", "tool_call_f1", "execution")
_FIRST_BATCH, _MAX_BATCH = 8, 256
_CUSTOM_METRIC_SECONDS = 5.0
_REFERENCE_INDEX = re.compile(r"references\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Reference:
    """The reference of a row, or a list of several; `where` is the file and line, `row` the row's number.

    `columns` are the row's, if a metric takes them.
    """

    where: str
    row: int
    text: str | list[str]
    columns: Mapping[str, Any] | None = None

    @property
    def answer(self) -> str:
        """A right answer."""
        return self.text if isinstance(self.text, str) else self.text[0]


def rehearse(
    recipe: Recipe, task: Task, rows: UsedRows, run: RunDir, *, is_prepared: bool, seconds: float | None = None
) -> list[str]:
    """Call every metric that scores answers on the references; return notes on references left out for lack of time.

    Args:
        run: the run, whose folder of the recipe is where relative paths start from.
        is_prepared: whether `rows` are those that are prepared in the run.
        seconds: about how long each metric may take; by default until all references are read, but 5 s for custom
            metrics, which may be slow.

    Raises:
        TunesmithError: a metric rejects a reference or fails. It is the metric's own error, with the file and line of
            the row.
    """
    notes, folder = [], run.recipe_folder
    uses = (
        ("test", answer_metrics(recipe.evaluate.metrics), recipe.evaluate.rows),
        ("valid", answer_metrics(recipe.train.valid_metrics), recipe.train.valid_rows),
    )
    custom = custom_metrics([name for _, names, _ in uses for name in names], folder)
    first = {
        split: list(islice(_references(task, rows, split, count, recipe.seed), _MAX_BATCH))
        for split, names, count in uses
        if any(custom[name].takes_rows for name in names if name in custom)
    }
    with_columns = _with_columns(first, recipe, run, is_prepared=is_prepared)
    with open_database(recipe, folder) as database:
        for split, names, count in uses:
            for name in names:
                references = _references(task, rows, split, count, recipe.seed)
                if name in custom and custom[name].takes_rows:
                    references = iter(with_columns[split])
                limit = seconds if name not in custom or seconds is not None else _CUSTOM_METRIC_SECONDS
                checked = _rehearse_metric(name, custom.get(name), references, database, limit)
                total = min(count, len({entry.id for entry in rows.ledger_entries(split)}))
                if name in _CAN_REJECT and checked < total:
                    rows_checked = f"{checked:,} of the {total:,} {split} rows to answer"
                    notes.append(f"{name}: checked the references of {rows_checked}")
    return notes


def _references(task: Task, rows: UsedRows, split: str, count: int, seed: int) -> Iterator[Reference]:
    """Yield the reference of each distinct row of a split, those of the rows to answer first."""
    entries = rows.ledger_entries(split)
    indices = {str(entry.id): index for index, entry in reversed(list(enumerate(entries)))}
    chosen = choose_by_hash(indices, count, seed)
    for index in sorted(indices.values(), key=lambda index: (entries[index].id not in chosen, entries[index].row)):
        yield Reference(entries[index].where, entries[index].row, scored_reference(task, rows.example(split, index)))


def _with_columns(
    references: Mapping[str, Sequence[Reference]], recipe: Recipe, run: RunDir, *, is_prepared: bool
) -> dict[str, list[Reference]]:
    """Return the references of each split with the columns of their rows. The sources are read once for all of them."""
    numbers = {split: {reference.row for reference in of_split} for split, of_split in references.items()}
    columns: dict[int, Columns] = {}
    if is_prepared:
        for split, of_split in numbers.items():
            columns |= row_columns(recipe, run, split, of_split)
    elif numbers:  # the run may have those of an earlier `prepare`
        columns = dict(source_columns(recipe, run.recipe_folder, set().union(*numbers.values())))
    return {
        split: [replace(reference, columns=columns[reference.row]) for reference in of_split]
        for split, of_split in references.items()
    }


def _rehearse_metric(
    name: str,
    custom: CustomMetric | None,
    references: Iterator[Reference],
    database: Path | None,
    seconds: float | None,
) -> int:
    """Call a metric on batches of growing size until the references or the time run out; return how many were used."""
    start, size, checked = time.monotonic(), _FIRST_BATCH, 0
    can_reject = custom is not None or name in _CAN_REJECT
    while batch := list(islice(references, size)):
        interrupt.check()
        texts = [reference.answer for reference in batch]
        if custom is not None:
            _call_custom(custom, batch, texts)
            if checked == 0:  # wrong answers too: a failed row has an empty answer, and models may answer anything
                _call_custom(custom, batch, ["", *texts[:-1]])
        else:
            # `execution` runs the query of the reference in any case; an empty answer saves running it twice.
            _call(name, batch, [""] * len(batch) if name == "execution" else texts, database)
        checked += len(batch)
        size = min(2 * size, _MAX_BATCH)
        if not can_reject or (seconds is not None and time.monotonic() - start > seconds):
            break
    return checked


def _call(name: str, batch: Sequence[Reference], answers: Sequence[str], database: Path | None) -> None:
    """Score answers with a built-in metric; if it rejects a reference, raise its error with the row's file and line."""
    try:
        score(answers, [reference.text for reference in batch], [name], database=database)
    except TunesmithError as error:
        index = _REFERENCE_INDEX.fullmatch(error.where or "")
        if index is None:
            raise
        reference = batch[int(index[1])]
        problem = error.message if error.message.startswith("the ") else f"the reference {error.message}"
        problem = f"`{name}`: {problem} ({_shown(reference)!r})"
        raise type(error)(problem, where=reference.where, hint=error.hint, code=error.code) from error


def _call_custom(metric: CustomMetric, batch: Sequence[Reference], answers: Sequence[str]) -> None:
    """Call a custom metric; if it fails, find the row on which it fails and add it to the error."""
    try:
        metric(answers, [reference.text for reference in batch], _columns_of(batch))
    except RecipeError as error:
        for reference, answer in zip(batch, answers, strict=True):
            try:
                metric([answer], [reference.text], _columns_of([reference]))
            except RecipeError:
                is_right = answer == reference.answer
                tried = "the reference as the answer" if is_right else f"the answer {shorten(answer)!r}"
                error.message += f"; it fails on {tried}, with the reference {_shown(reference)!r} "
                error.message += f"of {reference.where}"
                break
        raise


def _columns_of(batch: Sequence[Reference]) -> list[Mapping[str, Any]]:
    return [reference.columns or {} for reference in batch]


def _shown(reference: Reference) -> str:
    return shorten(reference.text if isinstance(reference.text, str) else " | ".join(reference.text))
