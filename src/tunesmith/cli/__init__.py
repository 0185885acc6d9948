"""The command line: thin verbs, and one boundary at which every exception becomes a message and an exit code."""

import logging
import os
import sys
import warnings
from typing import NoReturn

from tunesmith.cli import start, run, sweep, judge, inference, registry, machine  # isort: skip; the order of the verbs
from tunesmith.cli.app import app
from tunesmith.cli.boundary import run_command

__all__ = ["app", "inference", "judge", "machine", "main", "registry", "run", "start", "sweep"]


def main() -> NoReturn:
    """Run the command line and exit with the code that docs/cli.md lists."""
    _prepare_environment()
    sys.exit(run_command(app, sys.argv[1:]))


def _prepare_environment() -> None:
    """Set what has to be set before torch is imported."""
    # Threads that wait for each other by spinning long starve when another process wants the same core, and threads
    # that sleep at once are slow to wake; a short spin is the middle (benchmarks/busy_neighbour.py).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Nothing is compiled, but bitsandbytes, which peft imports, makes torch import its compiler: a quarter of a start.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each lost process prints C++ stacks in all others
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that nobody here can install
    # Deprecations among the libraries are nothing that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\.")
