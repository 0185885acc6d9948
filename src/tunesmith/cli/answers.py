"""What `generate` and `chat` read and write: prompts and rows, answers, and a conversation on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.progress import log
from tunesmith.data.sources import Row, read_rows
from tunesmith.inference.chatter import Chatter
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import TextData
from tunesmith.report.wording import visible
from tunesmith.tasks.base import MissingColumn, RowProblem, Task


def read_row(pairs: Sequence[str]) -> dict[str, str]:
    """Return the row that `column=value` texts give; raise RecipeError if one is malformed or a column repeated."""
    row: dict[str, str] = {}
    for pair in pairs:
        column, sign, value = pair.partition("=")
        if not sign or not column:
            raise RecipeError(f"`{pair}` is not column=value", where="--row", code="usage")
        if column in row:
            raise RecipeError(
                f"column `{column}` is given twice", where="--row", code="usage", hint="several rows go in --rows FILE"
            )
        row[column] = value
    return row


def read_prompts(file: Path) -> list[str]:
    """Return the lines of a text file that are not blank; `-` is standard input. Raise DataError if there are none."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("is not UTF-8 text", where=str(file), code="encoding", hint="save it as UTF-8") from None
    prompts = [line for line in text.split("\n") if line.strip()]
    if not prompts:
        raise DataError("holds no prompt", where=str(file), hint="write one prompt per line")
    return prompts


def answer_texts(chatter: Chatter, texts: Sequence[str], *, samples: int, **settings: Any) -> list[dict[str, Any]]:
    """Return {prompt, answer, sample} for each sample of each text, each asked on its own."""
    lines = chatter.answer([chatter.turns_of_text(text) for text in texts], samples=samples, **settings)
    return [
        _answered(line, prompt=texts[place // samples], **_sample(place, samples)) for place, line in enumerate(lines)
    ]


def answer_row(chatter: Chatter, *, samples: int, **settings: Any) -> list[dict[str, Any]]:
    """Return {prompt, answer, sample} for each sample of the row that the chatter was opened with."""
    lines = chatter.answer([chatter.turns_of_row(chatter.row)], samples=samples, **settings)
    return [_answered(line, prompt=line["prompt"], **_sample(i, samples)) for i, line in enumerate(lines)]


def _answered(line: Mapping[str, Any], *, prompt: str, **sample: int) -> dict[str, Any]:
    if line["error"] is not None:
        raise DataError(line["error"], where=prompt[:80], hint="ask less at once, or lower --max-new-tokens")
    return {"prompt": prompt, "answer": line["prediction"], **sample}


def _sample(place: int, samples: int) -> dict[str, int]:
    """Return {sample}, the number of the sample at a place of all answers; nothing if each question has one answer."""
    return {"sample": place % samples} if samples > 1 else {}


def answer_rows(chatter: Chatter, file: Path, *, samples: int, **settings: Any) -> list[dict[str, Any]]:
    """Return {id, row, sample, prompt, prediction, reference, stopped, error} for each row of a data file, in order.

    `id` is the row's own, if it has a column of that name, else its number; `sample` is left out if each row has one
    answer, and `reference` if the row has none. `tunesmith score` can read these lines.
    Columns that the model's recipe renames are renamed here too.

    Raises:
        RecipeError: a row lacks a column of the prompt.
        DataError: the file cannot be read, or a row cannot be used.
    """
    read = read_rows(FileSource(file=str(file)), folder=Path())
    rows = [replace(row, values=chatter.recorded.renamed(row.values)) for row in read]
    asked = [chatter.turns_of_row(row.values, row.where) for row in rows]
    lines = chatter.answer(asked, samples=samples, **settings)
    if failed := sum(line["error"] is not None for line in lines):
        log(f"{failed} of {len(lines)} answers are missing; see their `error`")
    found = []
    for place, line in enumerate(lines):
        row = rows[place // samples]
        named = {"id": row.values.get("id", row.number), "row": row.number, **_sample(place, samples)}
        found.append({**named, **line, **_reference(chatter.task, row)})
    return found


def _reference(task: Task, row: Row) -> dict[str, str]:
    """Return {reference} if the row has an answer, else nothing."""
    try:
        return {"reference": task.reference(task.parse(row.values))}
    except (RowProblem, MissingColumn):
        return {}


def note_missing_template(chatter: Chatter, reference: str) -> None:
    """Print a note on stderr if a model is not asked through a prompt template that it was trained with."""
    if isinstance(chatter.data, TextData):
        log(f"note: {reference} continues the text itself; no template is applied")
    elif not chatter.is_trained_prompt:
        how = "gets the prompt through its chat template only" if chatter.keeps_turns else "gets the prompt as it is"
        log(f"note: {reference} {how}; it has no prompt template")


def converse(chatter: Chatter, **settings: Any) -> None:
    """Print answers to the lines of standard input, until an empty one or its end.

    Args:
        settings: those of `Chatter.ask`.
    """
    while True:
        try:
            text = input("you> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not text.strip():
            return
        try:
            print(visible(chatter.ask(text, **settings)), flush=True)
        except DataError as error:
            if not sys.stdin.isatty():
                raise
            log(f"error: {error}")  # the conversation can go on with another question
