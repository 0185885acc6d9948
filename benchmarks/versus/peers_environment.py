"""The peers' environment: `.venv-peers` at the root of the repository, apart from ours, since their ranges differ.

torch is held at the version of constraints.txt; any other would be fetched anew, with gigabytes of what it needs.
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
# What only GPUs can use; where one of these does not install, its settings fail and the error is told.
PINNED_ON_GPU = ROOT / "benchmarks" / "peers-gpu.txt"
CONSTRAINTS = ROOT / "constraints.txt"
# torchtune and peft want different versions of one package.
_PINNED_APART = ROOT / "benchmarks" / "peers-torchtune.txt"
_NOTHING_ANSWERS = ("Retrying (", "ConnectionError", "timed out", "No matching distribution")


class CannotMake(Exception):
    """The peers' environment could not be made."""


def peers_python(say: Callable[[str], None], *, gpu: bool = False) -> Path:
    """Return the interpreter of the peers' environment, which is made where it is not there or not up to date.

    PEERS_PYTHON names one that somebody else made.

    Raises:
        CannotMake: it cannot be made.
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
    """Make an environment within the peers' one, which sees all of it and has a few packages of its own before it."""
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
    """Return what an environment is made from; the folder counts, since one that was moved points to its old place."""
    sources = [PINNED, _PINNED_APART, CONSTRAINTS, *([PINNED_ON_GPU] if gpu else [])]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    return hashlib.sha256(f"{PLACE}\n{sys.version}\n{text}".encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _pip_must(command: list[str]) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept, stdin=subprocess.DEVNULL)
    if done.returncode:
        told = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in told if line.startswith("ERROR")] or told[-1:] or ["pip failed without a word"]
        unreachable = any(mark in line for mark in _NOTHING_ANSWERS for line in told)
        raise CannotMake(f"{'is the package index reachable? ' if unreachable else ''}{errors[-1][:300]}")
