"""The command line in this process, and tiny models by name, for the tests of real users' cases."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.cases import PROMOTED, Case, Command, Result, model, write
from tests.support.tiny import save_model

from tunesmith import cli


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny models by name."""
    folder = tmp_path_factory.mktemp("models")
    return lambda kind: model(folder, kind)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, which computes in fp64 on request; other models keep their norms in fp32."""
    return save_model(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(scope="session")
def finished(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its rows and base, its finished run `runs/a`, and the registry with loop@staging."""
    from tunesmith import run_recipe

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TUNESMITH_REGISTRY", str(folder / "registry"))
        shutil.copytree(models("tiny"), "base")
        changes = {**PROMOTED, "model.base": "base", "data.system": "Be brief.", "data.prompt": "Do: {q}"}
        run_recipe(write(Case("", 0, changes=changes), models), out="runs/a")
    return folder


@pytest.fixture
def moved(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the same folder, which becomes the current folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_REGISTRY", str(tmp_path / "registry"))
    return tmp_path


@pytest.fixture
def tunesmith(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process and in a folder for this test."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        return Result(ended.value.code, seen.out, seen.out + seen.err)

    return command
