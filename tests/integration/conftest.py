"""The command line in this process, and tiny models by name, for the tests of real users' cases."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.cases import Command, Done, model

from tunesmith import cli


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny models by name."""
    folder = tmp_path_factory.mktemp("models")
    return lambda kind: model(folder, kind)


@pytest.fixture
def tunesmith(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process and in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return Done(ended.value.code, seen.out, seen.out + seen.err)

    return command
