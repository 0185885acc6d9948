"""The environment of the peers: `.venv-peers` at the root of the repository, because their version ranges differ.

torch has the version of constraints.txt; another one would need another download of several gigabytes.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.versus.rows import ROOT

PLACE = ROOT / ".venv-peers"
PINNED = ROOT / "benchmarks" / "peers.txt"
# Packages for GPUs only. If one does not install, its settings fail and the error is reported.
PINNED_ON_GPU = ROOT / "benchmarks" / "peers-gpu.txt"
CONSTRAINTS = ROOT / "constraints.txt"
# torchtune and peft want different versions of one package.
_PINNED_APART = ROOT / "benchmarks" / "peers-torchtune.txt"
_NOTHING_ANSWERS = ("Retrying (", "ConnectionError", "timed out", "No matching distribution")


class CannotMake(Exception):
    """The peers' environment could not be made."""


def peers_python(say: Callable[[str], None], *, gpu: bool = False) -> Path:
    """Return the interpreter of the peers' environment; make or update the environment if necessary.

    PEERS_PYTHON names the interpreter of another environment.

    Raises:
        CannotMake: the environment cannot be made.
    """
    if lent := os.environ.get("PEERS_PYTHON"):
        if not Path(lent).is_file():
            raise CannotMake(f"PEERS_PYTHON={lent} is not an interpreter")
        return Path(lent).absolute()
    python, stamp = PLACE / "bin" / "python", PLACE / ".made-from"
    wanted = _wanted(gpu)
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    say("making .venv-peers; it takes minutes, and 2 GB or more")
    shutil.rmtree(PLACE, ignore_errors=True)
    _pip_must([sys.executable, "-m", "venv", str(PLACE)])
    install = _install(python)
    _pip_must([*install, "-c", str(CONSTRAINTS), "-r", str(PINNED)])
    try:
        _apart("torchtune", _PINNED_APART, say)
    except CannotMake as error:
        say(f"torchtune does not install: {error}")
    for line in _lines(PINNED_ON_GPU) if gpu else []:
        try:
            _pip_must([*install, "-c", str(CONSTRAINTS), line])
        except CannotMake as error:
            say(f"{line} does not install: {error}")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _apart(name: str, pinned: Path, say: Callable[[str], None]) -> None:
    """Make an environment on top of the peers' one; its few packages take precedence."""
    say(f"making .venv-peers/{name}")
    place = PLACE / name
    _pip_must([sys.executable, "-m", "venv", str(place)])
    (shared,) = PLACE.glob("lib/python*/site-packages")
    (own,) = place.glob("lib/python*/site-packages")
    (own / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
    _pip_must([*_install(place / "bin" / "python"), "-c", str(CONSTRAINTS), "-r", str(pinned)])


def _install(python: Path) -> list[str]:
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-compile"]
    return [str(python), "-m", "pip", "install", *quiet]


def _wanted(gpu: bool) -> str:
    """Return the inputs of an environment, including its folder, because a moved environment is broken."""
    sources = [PINNED, _PINNED_APART, CONSTRAINTS, *([PINNED_ON_GPU] if gpu else [])]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    return hashlib.sha256(f"{PLACE}\n{sys.version}\n{text}".encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _pip_must(command: list[str]) -> None:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX")
    }
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        output = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = (
            [line for line in output if line.startswith("ERROR")] or output[-1:] or ["pip failed without a message"]
        )
        unreachable = any(mark in line for mark in _NOTHING_ANSWERS for line in output)
        raise CannotMake(f"{'is the package index reachable? ' if unreachable else ''}{errors[-1][:300]}")
