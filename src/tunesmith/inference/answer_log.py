"""The file to which `generate --out` writes answers: it survives kills, and the same command continues it.

Next to it, NAME.job.json has the digests of model and input and the settings of the answers. Answers of another job are
never mixed into the file.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.core.errors import Interrupted, RecipeError
from tunesmith.core.files import read_json, translate_enospc, write_json
from tunesmith.core.jsonl import cut_partial_line, json_line, read_jsonl
from tunesmith.core.locks import try_lock


class AnswerLog:
    """The finished answers of a job, in the order in which they finished.

    Args:
        samples: number of answers to each row.

    Attributes:
        finished, failed: the number of answers in the file, and of those that have an `error`.
    """

    def __init__(self, path: Path, samples: int) -> None:
        self._samples, self.finished, self.failed = samples, 0, 0
        self._known = bytearray()  # by row and sample: 1 if the answer is in the file
        cut_partial_line(path)
        for line in read_jsonl(path):
            self._note(line)
        self._file = path.open("ab")

    def has(self, row: int, sample: int) -> bool:
        """Whether the answer is in the file."""
        place = row * self._samples + sample
        return place < len(self._known) and bool(self._known[place])

    def append(self, line: Mapping[str, Any]) -> None:
        """Write an answer, which is then safe from a kill of this process."""
        self._file.write(json_line(line).encode())
        self._file.flush()
        self._note(line)

    def close(self) -> None:
        """Write everything to the disk."""
        with self._file:
            os.fsync(self._file.fileno())

    def _note(self, line: Mapping[str, Any]) -> None:
        place = line["row"] * self._samples + line.get("sample", 0)
        self._known.extend(bytes(max(0, place + 1 - len(self._known))))
        self._known[place] = 1
        self.finished += 1
        self.failed += line["error"] is not None


@contextlib.contextmanager
def open_answer_log(path: Path, job: Mapping[str, Any], *, samples: int, restart: bool = False) -> Iterator[AnswerLog]:
    """Yield the answers of a job in a file, to continue them.

    Args:
        job: everything that the answers depend on.
        samples: number of answers to each row.
        restart: discard the answers in the file, also those of another job.

    Raises:
        RecipeError: the file has answers of another job, or is not one that this function made.
        Interrupted: another process writes to it.
        DoesNotFit: the disk is full.
        DamagedFile: a line of the file is not readable.
    """
    if path.exists() and not path.is_file():
        raise RecipeError("is not a regular file", where=str(path), code="wrong-path", hint="name a file to write")
    record = path.with_name(f"{path.name}.job.json")
    with translate_enospc(path), contextlib.ExitStack() as stack:
        if not stack.enter_context(try_lock(path)):
            message, hint = "another process is writing to it", "wait for it, or pass another --out"
            raise Interrupted(message, where=str(path), code="locked", hint=hint)
        if path.stat().st_size:
            _check_job(path, record, job, restart=restart)
        if restart:
            os.truncate(path, 0)
        if not path.stat().st_size:
            write_json(record, job)
        log = AnswerLog(path, samples)
        stack.callback(log.close)
        yield log


def _check_job(path: Path, record: Path, job: Mapping[str, Any], *, restart: bool) -> None:
    """Raise RecipeError unless the answers in a file are of this job, or may be discarded."""
    if not record.exists():
        message = "exists, and is not a file that `generate --out` made"
        raise RecipeError(message, where=str(path), code="exists", hint="pass another --out")
    recorded = read_json(record)
    changed = list(_changes(recorded, job))
    if changed and not restart:
        message = f"has answers of another job: {', '.join(changed)} changed"
        hint = "pass another --out, or discard these answers with --restart"
        raise RecipeError(message, where=str(path), code="inputs-changed", hint=hint)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of the values that differ, such as `settings.max_new_tokens`."""
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}"
