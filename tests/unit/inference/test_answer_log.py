"""Finished answers are known after a kill, whatever their order, and survive a full disk."""

import json
import resource
from pathlib import Path
from typing import Any

from tests.support.errors import raises

from tunesmith.core.errors import DoesNotFit, Interrupted, RecipeError
from tunesmith.inference.answer_log import open_answer_log

JOB = {"model": "m", "settings": {"samples": 2}}


def line(row: int, sample: int, error: str | None = None) -> dict[str, Any]:
    """Return an answer."""
    return {"row": row, "sample": sample, "prediction": "x" * 50, "error": error}


def test_answers_in_the_file_are_known(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answer_log(path, JOB, samples=2) as log:
        log.append(line(700, 1))
        log.append(line(3, 0, "no room"))
        assert [len(text.splitlines()) for text in [path.read_text()]] == [2]  # at once, not at the end
    with path.open("a") as file:
        file.write('{"row": 4, "sam')
    with open_answer_log(path, JOB, samples=2) as log:
        assert (log.finished, log.failed) == (2, 1)
        assert [log.has(*key) for key in ((700, 1), (3, 0), (3, 1), (4, 0), (700, 0), (9000, 0))] == [
            True, True, False, False, False, False,
        ]  # fmt: skip
        log.append(line(4, 0))
    assert [json.loads(text)["row"] for text in path.read_text().splitlines()] == [700, 3, 4]


def test_another_job_is_refused_unless_restarted(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answer_log(path, JOB, samples=2) as log:
        log.append(line(1, 0))
    other = {**JOB, "model": "n"}
    with raises(RecipeError, "inputs-changed", where=str(path)), open_answer_log(path, other, samples=2):
        pass
    more = {**JOB, "settings": {"samples": 3}}
    with raises(RecipeError, "inputs-changed", "settings.samples"), open_answer_log(path, more, samples=3):
        pass
    with open_answer_log(path, other, samples=2, restart=True) as log:
        assert not log.has(1, 0)
        log.append(line(2, 0))
    with open_answer_log(path, other, samples=2) as log:
        assert log.has(2, 0)


def test_an_empty_file_belongs_to_no_job(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answer_log(path, JOB, samples=1):
        pass
    with open_answer_log(path, {**JOB, "model": "n"}, samples=1) as log:
        assert log.finished == 0


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first = open_answer_log(path, JOB, samples=1)
    with first, raises(Interrupted, "locked", where=str(path)), open_answer_log(path, JOB, samples=1):
        pass


def test_folders_and_devices_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with raises(RecipeError, "wrong-path", where=str(path)), open_answer_log(path, JOB, samples=1):
            pass


def test_a_full_disk_loses_no_finished_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with raises(DoesNotFit, "disk-full", where=str(path)), open_answer_log(path, JOB, samples=1) as log:
            log.append(line(1, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
            log.append(line(2, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with open_answer_log(path, JOB, samples=1) as log:
        assert (log.has(1, 0), log.has(2, 0)) == (True, False)
        log.append(line(2, 0))
    assert [json.loads(text)["row"] for text in path.read_text().splitlines()] == [1, 2]
