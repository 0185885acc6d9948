"""Fuzzed recipes and data files: `plan` ends within seconds with a documented exit code, never with a traceback."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from tests.support.fuzzed_files import FORMATS, fuzzed_file, fuzzed_settings, good_rows
from tests.support.fuzzed_recipes import fuzzed_recipe
from tests.support.tiny import recipe as write_recipe

from tunesmith import cli

pytestmark = pytest.mark.slow  # 400 plans
ALLOWED = (0, 2, 3, 5)
SEEDS = range(50)
MOST_SECONDS = 10


class TookTooLong(BaseException):
    """Derived from BaseException, because the tested code could catch an Exception."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TookTooLong if the block takes more CPU time; wall time would depend on the load of the machine."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """Run a command in this process; return its exit code, or its output or exception if it is a fault."""
    monkeypatch.setattr(sys, "argv", ["tunesmith", *arguments])
    try:
        with time_limit(MOST_SECONDS):
            cli.main()
    except SystemExit as ended:
        stderr = capsys.readouterr().err
        return ended.code if ended.code in ALLOWED and "Traceback" not in stderr else f"{ended.code}: {stderr}"
    except (Exception, TookTooLong) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def test_fuzzed_recipes_are_planned_or_refused(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good_rows()))
    found = {}
    for seed in SEEDS:
        Path("recipe.yaml").write_bytes(fuzzed_recipe(seed, tiny))
        found[seed] = outcome(["plan", "recipe.yaml"], monkeypatch, capsys)
    assert {seed: code for seed, code in found.items() if code not in ALLOWED} == {}
    # Some recipes are valid and some are not; which ones changes with every new key of the schema.
    assert {0, 2} <= set(found.values())


@pytest.mark.parametrize("kind", FORMATS)
def test_fuzzed_data_files_are_read_or_refused(
    kind: str, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"source": {"file": f"rows.{kind}"}, "task": "chat", "prompt": "{q}", "response": "{a}",
            "split": {"valid": 0.2, "test": 0.3}}  # fmt: skip
    write_recipe(tmp_path, tiny, data=data)
    found = {}
    for seed in SEEDS:
        Path(f"rows.{kind}").write_bytes(fuzzed_file(seed, kind))
        found[seed] = outcome(["plan", "recipe.yaml", *fuzzed_settings(seed, kind)], monkeypatch, capsys)
    assert {seed: code for seed, code in found.items() if code not in ALLOWED} == {}
    assert 3 in found.values()
