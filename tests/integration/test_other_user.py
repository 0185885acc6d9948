"""Another user reads a registry and a run without changing them, and can write to a copy."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import state

USER = 12345
# Only root may be able to read Python's own files; the capability lets the other user read files, but not write.
BECOME = [
    "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
]  # fmt: skip
# Runs commands in sequence, and prints [exit code, error code or null] of each as JSON.
SCRIPT = """
import contextlib, io, json, sys
from tunesmith.cli import app
from tunesmith.cli.boundary import run_command
ended = []
for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run_command(app, command.split())
    ended.append([code, json.loads(out.getvalue())["error"]["code"] if "--json" in command and code else None])
print(json.dumps(ended))
"""
READS = [
    "models", "models loop", "generate loop@staging --prompt hi --max-new-tokens 3", "status runs/a", "compare runs/a",
    "generate runs/a --prompt hi --max-new-tokens 3", "show runs/a --rows 1",
]  # fmt: skip
WRITES = [
    "alias loop@1 live --json", "promote runs/a --json", "run runs/a --json", "plan runs/a --json",
    "run recipe.yaml --out new --json", "run recipe.yaml --json", "plan recipe.yaml --json",
    "sweep recipe.yaml --over seed=1,2 --json", "show runs/a --html page.html --json",
]  # fmt: skip
OWN = [
    "alias loop@1 live", "generate loop@live --prompt hi --max-new-tokens 3", "run runs/a evaluate.rows=8",
    "promote runs/a --force --reason tried", "rollback loop",
]  # fmt: skip
Ended = list[list[Any]]


def can_become_another() -> bool:
    return (
        os.geteuid() == 0
        and shutil.which("setpriv") is not None
        and subprocess.run([*BECOME, "true"], capture_output=True, check=False).returncode == 0
    )


pytestmark = pytest.mark.skipif(not can_become_another(), reason="only root, with setpriv, can become another user")


@pytest.fixture
def here(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the finished run's folder that every user can reach, as the current folder."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        monkeypatch.chdir(shutil.copytree(finished, Path(place) / "project"))
        monkeypatch.setenv("TUNESMITH_REGISTRY", f"{place}/project/registry")
        for weights in Path("base").glob("*.safetensors"):
            weights.chmod(0o644)  # transformers makes them readable by their owner only
        home = Path(place) / "home"
        home.mkdir()
        os.chown(home, USER, USER)
        monkeypatch.setenv("TUNESMITH_CACHE", str(home / "cache"))
        yield Path(place) / "project"


@pytest.fixture
def other(here: Path) -> Callable[[list[str]], Ended]:
    """Return a function that runs commands as another user."""

    def run(commands: list[str]) -> Ended:
        line = [*BECOME, sys.executable, "-c", SCRIPT, *commands]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        found: Ended = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def test_another_user_reads_and_cannot_write(other: Callable[[list[str]], Ended]) -> None:
    assert [name for name, (mode, _) in state().items() if not mode & stat.S_IROTH] == []
    before = state()
    assert other(READS) == [[0, None]] * len(READS)
    assert other(WRITES) == [[2, "permission"]] * len(WRITES)
    assert state() == before


def test_a_copy_is_the_other_users_own(here: Path, other: Callable[[list[str]], Ended]) -> None:
    for path in (here, *here.rglob("*")):
        os.chown(path, USER, USER)
    assert other(OWN) == [[0, None]] * len(OWN)
    assert {path.stat().st_uid for path in here.rglob("*")} == {USER}
