"""Answer the rows or lines of files in windows, so that memory does not grow with them."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import DataError
from tunesmith.core.records import Example, Turn
from tunesmith.data.local_files import digest_source_file
from tunesmith.data.remote_files import is_remote
from tunesmith.data.sources import Row, digest_sources, read_rows
from tunesmith.data.text_file import read_text_lines, wrap_read_errors
from tunesmith.inference.chatter import Chatter, EncodedPrompt
from tunesmith.inference.sampling import Sampling, seed_samples
from tunesmith.recipe.data_source import FileSource
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.references import row_references, scored_reference

STDIN = "-"
# Answers that are asked together. At the end of a window, slots wait for its last answers; with this many, the wait is
# a few per cent of the time, and the prompts take some megabytes.
_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class FilePrompt:
    """A row or line of a file as a prompt.

    Attributes:
        number: the number of the row or line, from 1.
        id: the row's column of that name, or else its number.
        turns: the prompt in the model's template.
        reference: the row's answer or answers, if it has any.
    """

    number: int
    id: Any
    turns: tuple[Turn, ...]
    reference: str | list[str] | None = None


class FilePrompts:
    """The prompts of a file; each iteration reads the file again, and memory does not grow with it.

    A `.txt` file and standard input (`-`, which is held in memory) have one prompt per line; blank lines are skipped.
    Anything else is read as `data.source.file` of a recipe: a file, a pattern, a folder or an address. Columns that the
    model's recipe renames may have either name.

    Raises:
        RecipeError: a row lacks a column of the prompt.
        DataError: the file cannot be read, has no prompts, or has a row that cannot be used.
    """

    def __init__(self, chatter: Chatter, file: str) -> None:
        self._chatter, self._file = chatter, file
        self._stdin = list(enumerate(sys.stdin, 1)) if file == STDIN else []
        self.count = sum(1 for _ in self)
        if not self.count:
            raise DataError("has no prompts", where=file, code="no-prompts", hint="write one prompt per line")

    def digest(self) -> str:
        """Return the digest of the file, or of all files; raise DataError if one cannot be read."""
        if is_lines(self._file):
            return digest_source_file(Path(self._file))
        return digest_sources(FileSource(file=self._file), folder=Path())

    def __iter__(self) -> Iterator[FilePrompt]:
        if is_lines(self._file):
            for number, line in self._lines():
                interrupt.check()
                if text := line.removesuffix("\n") if line.strip() else "":
                    yield FilePrompt(number, number, self._chatter.turns_of_text(text))
            return
        for row in read_rows(FileSource(file=self._file), folder=Path()):
            interrupt.check()
            values = self._chatter.recorded.renamed(row.values)
            turns = self._chatter.turns_of_row(values, row.where)
            yield FilePrompt(row.number, values.get("id", row.number), turns, self._reference(row, values))

    def _lines(self) -> Iterator[tuple[int, str]]:
        if self._file == STDIN:
            yield from self._stdin
            return
        path = Path(self._file)
        with wrap_read_errors(path, self._file):
            yield from read_text_lines(path, self._file)

    def _reference(self, row: Row, values: dict[str, Any]) -> str | list[str] | None:
        task = self._chatter.task
        try:
            references = row_references(self._chatter.data, values)
            turns = () if references else task.parse(values)
            return scored_reference(task, Example("", row.number, "", turns, references))
        except RowProblem:
            return None


def is_lines(file: str) -> bool:
    """Whether each line of a file is a prompt."""
    return file == STDIN or (file.lower().endswith(".txt") and not is_remote(file))


def answer_file_prompts(
    chatter: Chatter,
    prompts: FilePrompts,
    *,
    sampling: Sampling,
    samples: int = 1,
    is_finished: Callable[[int, int], bool] = lambda number, sample: False,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Yield {id, row, sample, prompt, prediction, reference, stopped, error} of each answer when it is finished.

    `row` is the number of the row or line. `sample` is left out if each prompt has one answer, and `reference` if the
    row has none. A prompt that the chat template refuses has an `error`, as one without room for its answer.

    Args:
        is_finished: whether the answer with this row and sample is known already.
        settings: the other settings of `Chatter.answer_prompts`.
    """
    options = seed_samples(sampling, samples)
    requests = ((one, i) for one in prompts for i in range(samples) if not is_finished(one.number, i))
    while window := list(islice(requests, _WINDOW)):
        encoded: list[EncodedPrompt] = []
        asked: list[tuple[FilePrompt, int]] = []
        for prompt, sample in window:
            try:
                encoded.append(chatter.encode_prompt(prompt.turns))
                asked.append((prompt, sample))
            except DataError as error:
                text = "\n\n".join(turn.text for turn in prompt.turns)
                refused = {"prompt": text, "prediction": "", "stopped": False, "error": error.message}
                yield _line(prompt, sample, samples, refused)
        for place, line in chatter.answer_prompts(encoded, [options[sample] for _, sample in asked], **settings):
            yield _line(*asked[place], samples, line)


def _line(prompt: FilePrompt, sample: int, samples: int, answer: dict[str, Any]) -> dict[str, Any]:
    line = {"id": prompt.id, "row": prompt.number, **({"sample": sample} if samples > 1 else {}), **answer}
    return line if prompt.reference is None else {**line, "reference": prompt.reference}
