"""The input and output of `generate` and `chat`: prompts, rows, answers and conversations."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.progress import Progress, log
from tunesmith.inference.answer_log import open_answer_log
from tunesmith.inference.chatter import Chatter
from tunesmith.inference.file_prompts import FilePrompts, answer_file_prompts
from tunesmith.recipe.schema import TextData
from tunesmith.report.wording import visible


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
                f"`{column}` is given twice", where="--row", code="usage", hint="for several rows, pass --file FILE"
            )
        row[column] = value
    return row


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
        sample = {"sample": index % samples} if samples > 1 else {}
        answers.append({"prompt": prompt, "answer": line["prediction"], **sample})
    return answers


def answer_file(chatter: Chatter, file: str, *, samples: int, **settings: Any) -> list[dict[str, Any]]:
    """Return the answers to the rows or lines of a file in order, see `answer_file_prompts`."""
    lines = list(answer_file_prompts(chatter, FilePrompts(chatter, file), samples=samples, **settings))
    if failed := sum(line["error"] is not None for line in lines):
        log(f"{failed} of {len(lines)} answers are missing; see their `error`")
    return sorted(lines, key=lambda line: (line["row"], line.get("sample", 0)))


def answer_file_to(
    out: Path, chatter: Chatter, file: str, *, samples: int, restart: bool, **settings: Any
) -> dict[str, Any]:
    """Append the answers to the rows or lines of a file to `out` as they finish, and return {out, answers, failed}.

    Answers that an interrupted call left in `out` are not asked again.

    Args:
        restart: discard the answers in `out`, also those of another model, file or settings.

    Raises:
        Interrupted: Ctrl-C or a signal came.
        RecipeError: `out` has answers of another model, file or settings, or is another file.
        DoesNotFit: the disk is full.
    """
    with interrupt.catch_signals():
        prompts = FilePrompts(chatter, file)
        job = {
            "model": chatter.folder.digest(),
            "file": prompts.digest(),
            "rows": prompts.count,
            "columns": dict(chatter.row),
            "system": chatter.system,
            "recorded": asdict(chatter.recorded),
            "settings": {**settings, "sampling": asdict(settings["sampling"]), "samples": samples},
        }
        with open_answer_log(out, job, samples=samples, restart=restart) as answers:
            total = prompts.count * samples
            progress = Progress("answers", total=total, unit="answers", start=answers.finished)
            lines = answer_file_prompts(chatter, prompts, samples=samples, is_finished=answers.has, **settings)
            for line in lines:
                answers.append(line)
                progress.update(answers.finished)
            progress.close()
    return {"out": str(out), "answers": answers.finished, "failed": answers.failed}


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
