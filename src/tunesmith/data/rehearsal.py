"""Every metric of a recipe, called on the references before a model answers anything.

A reference that a metric refuses, or a metric that raises, returns NaN or too few values, would otherwise be found
after training. `plan` takes a few seconds for each metric; `prepare` reads all references of metrics that can refuse
one.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.data.database import open_database
from tunesmith.data.split import choose_by_hash
from tunesmith.data.used_rows import UsedRows
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.custom import CustomMetric, custom_metrics
from tunesmith.scoring.metrics import answer_metrics, score
from tunesmith.tasks.base import Task

# Metrics that refuse some references. The others take any text, so a few rows show that they work.
_CAN_REFUSE = ("json_field_f1", "execution")
_FEW, _MOST = 8, 256
_SECONDS_OF_OWN = 5.0
_PLACE = re.compile(r"references\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Reference:
    """The right answer of a row; `where` is file and line."""

    where: str
    text: str


def rehearse(recipe: Recipe, task: Task, rows: UsedRows, *, folder: Path, seconds: float | None = None) -> list[str]:
    """Call every metric that scores answers on right answers; return notes about references that there was no time for.

    Args:
        folder: what relative paths are relative to.
        seconds: about how long each metric may take; by default until all references are read, but 5 s for a function
            of the user's own, which may be slow.

    Raises:
        TunesmithError: a metric refuses a reference, with file and line of its row, or fails. The kind of error is the
            metric's own.
    """
    notes = []
    asked = (
        ("test", answer_metrics(recipe.evaluate.metrics), recipe.evaluate.rows),
        ("valid", answer_metrics(recipe.train.valid_metrics), recipe.train.valid_rows),
    )
    own = custom_metrics([name for _, names, _ in asked for name in names], folder)
    with open_database(recipe, folder) as database:
        for split, names, count in asked:
            for name in names:
                references = _references(task, rows, split, count, recipe.seed)
                limit = seconds if name not in own or seconds is not None else _SECONDS_OF_OWN
                done = _called(name, own.get(name), references, database, limit)
                total = min(count, len({line.id for line in rows.ledger_entries(split)}))
                if name in _CAN_REFUSE and done < total:
                    notes.append(
                        f"{name} has read the references of {done:,} of {total:,} {split} rows that will be answered"
                    )
    return notes


def _references(task: Task, rows: UsedRows, split: str, count: int, seed: int) -> Iterator[Reference]:
    """Yield the right answer of each row of a split once: first of the rows that will be asked, then of the others."""
    lines = rows.ledger_entries(split)
    places = {str(line.id): place for place, line in reversed(list(enumerate(lines)))}
    chosen = choose_by_hash(places, count, seed)
    for place in sorted(places.values(), key=lambda place: (lines[place].id not in chosen, lines[place].row)):
        yield Reference(lines[place].where, task.reference(rows.example(split, place).turns))


def _called(
    name: str, own: CustomMetric | None, rows: Iterator[Reference], database: Path | None, seconds: float | None
) -> int:
    """Call a metric on ever larger batches until all rows are done or time is up; return how many rows were done."""
    began, size, done = time.monotonic(), _FEW, 0
    can_refuse = own is not None or name in _CAN_REFUSE
    while batch := list(islice(rows, size)):
        interrupt.check()
        texts = [row.text for row in batch]
        if own is not None:
            _call_custom(own, batch, texts)
            if done == 0:  # a row that failed has an empty answer, and a model may answer anything
                _call_custom(own, batch, ["", *texts[:-1]])
        else:
            # A query is run for the reference anyway: an empty answer saves running it twice.
            _call(name, batch, [""] * len(batch) if name == "execution" else texts, database)
        done += len(batch)
        size = min(2 * size, _MOST)
        if not can_refuse or (seconds is not None and time.monotonic() - began > seconds):
            break
    return done


def _call(name: str, batch: Sequence[Reference], answers: Sequence[str], database: Path | None) -> None:
    """Score answers by a built-in metric; if it refuses a reference, raise its error with the row's file and line."""
    try:
        score(answers, [row.text for row in batch], [name], database=database)
    except TunesmithError as error:
        place = _PLACE.fullmatch(error.where or "")
        if place is None:
            raise
        row = batch[int(place[1])]
        told = f"the reference {error.message}" if not error.message.startswith("the ") else error.message
        raise type(error)(f"`{name}`: {told} ({_cut(row.text)})", where=row.where, hint=error.hint) from error


def _call_custom(metric: CustomMetric, batch: Sequence[Reference], answers: Sequence[str]) -> None:
    """Call a metric of the user's own; if it fails, look for the row that it fails on."""
    try:
        metric(answers, [row.text for row in batch])
    except RecipeError as error:
        found = next((pair for pair in zip(batch, answers, strict=True) if _fails(metric, *pair)), None)
        if found is None:
            raise
        row, answer = found
        asked = "the answer that is its reference" if answer == row.text else f"the answer {_cut(answer)}"
        raise RecipeError(
            f"{error.message}; it fails on {asked}, with the reference {_cut(row.text)} of {row.where}",
            where=error.where,
            hint=error.hint,
        ) from error


def _fails(metric: CustomMetric, row: Reference, answer: str) -> bool:
    try:
        metric([answer], [row.text])
    except RecipeError:
        return True
    return False


def _cut(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:79]}\u2026")
