"""The input and output of `generate` and `chat`: prompts, rows, answers and conversations."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.progress import log
from tunesmith.core.records import Example
from tunesmith.data.sources import Row, read_rows
from tunesmith.inference.chatter import Chatter
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import Data, TextData
from tunesmith.report.wording import visible
from tunesmith.tasks.base import RowProblem, Task
from tunesmith.tasks.references import row_references, scored_reference


def read_row(pairs: Sequence[str]) -> dict[str, str]:
    """Return the row in `column=value` texts; raise RecipeError if a text is malformed or a column is repeated."""
    row: dict[str, str] = {}
    for pair in pairs:
        column, sign, value = pair.partition("=")
        if not sign or not column:
            raise RecipeError(
                f"`{pair}` is not COLUMN=VALUE", where="--row", code="usage", hint="write --row question='What is it?'"
            )
        if column in row:
            raise RecipeError(
                f"`{column}` is given twice", where="--row", code="usage", hint="for several rows, pass --rows FILE"
            )
        row[column] = value
    return row


def read_prompts(file: Path) -> list[str]:
    """Return the lines of a text file without blank ones; `-` is standard input. Raise DataError if none is left."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("is not UTF-8 text", where=str(file), code="encoding", hint="save it as UTF-8") from None
    prompts = [line for line in text.split("\n") if line.strip()]
    if not prompts:
        raise DataError("has no prompts", where=str(file), code="no-prompts", hint="write one prompt per line")
    return prompts


def answer_texts(chatter: Chatter, texts: Sequence[str], *, samples: int, **settings: Any) -> list[dict[str, Any]]:
    """Return {prompt, answer, sample} for each sample of each text. Texts are independent of each other.

    Without a text, the row that the chatter was opened with is answered.
    """
    prompts = [chatter.turns_of_text(text) for text in texts] or [chatter.turns_of_row(chatter.row)]
    answers = []
    for index, line in enumerate(chatter.answer(prompts, samples=samples, **settings)):
        prompt = texts[index // samples] if texts else line["prompt"]
        if line["error"] is not None:
            hint = "shorten the prompt, or lower --max-new-tokens"
            raise DataError(line["error"], where=prompt[:80], code="answer-failed", hint=hint)
        answers.append({"prompt": prompt, "answer": line["prediction"], **_sample(index, samples)})
    return answers


def _sample(index: int, samples: int) -> dict[str, int]:
    """Return {sample}, the number of the answer at `index` among those of its prompt; {} if each prompt has one."""
    return {"sample": index % samples} if samples > 1 else {}


def answer_rows(chatter: Chatter, file: Path, *, samples: int, **settings: Any) -> list[dict[str, Any]]:
    """Return {id, row, sample, prompt, prediction, reference, stopped, error} for each row of a data file, in order.

    `id` is the row's column of that name, or else its number. `sample` is left out if each row has one answer, and
    `reference` if the row has none. Columns that the model's recipe renames are renamed here too. `tunesmith score` can
    read the result.

    Raises:
        RecipeError: a row lacks a column of the prompt.
        DataError: the file cannot be read, or a row cannot be used.
    """
    source = FileSource(file=str(file))
    rows = [replace(row, values=chatter.recorded.renamed(row.values)) for row in read_rows(source, folder=Path())]
    prompts = [chatter.turns_of_row(row.values, row.where) for row in rows]
    lines = chatter.answer(prompts, samples=samples, **settings)
    if failed := sum(line["error"] is not None for line in lines):
        log(f"{failed} of {len(lines)} answers are missing; see their `error`")
    answers = []
    for index, line in enumerate(lines):
        row = rows[index // samples]
        ids = {"id": row.values.get("id", row.number), "row": row.number, **_sample(index, samples)}
        answers.append({**ids, **line, **_reference(chatter.task, chatter.data, row)})
    return answers


def _reference(task: Task, data: Data, row: Row) -> dict[str, str | list[str]]:
    """Return {reference} if the row has one or several, else {}."""
    try:
        references = row_references(data, row.values)
        turns = () if references else task.parse(row.values)
        return {"reference": scored_reference(task, Example("", row.number, "", turns, references))}
    except RowProblem:
        return {}


def note_missing_template(chatter: Chatter, reference: str) -> None:
    """Print a note on stderr if prompts are not put into the prompt template of training."""
    if isinstance(chatter.data, TextData):
        log(f"note: {reference} continues each text as it is; no prompt template is applied")
    elif not chatter.is_trained_prompt:
        form = "in its chat template only" if chatter.keeps_turns else "as they are"
        log(f"note: {reference} has no prompt template; it gets prompts {form}")


def converse(chatter: Chatter, **settings: Any) -> None:
    """Answer the lines of standard input, until an empty line or its end.

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
            log(f"error: {error}")  # another prompt may work
