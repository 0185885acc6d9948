"""The command line: a module of commands per topic, and the boundary that turns exceptions into exit codes."""

import logging
import os
import sys
import warnings
from typing import NoReturn

from tunesmith.cli import start, run, sweep, judge, inference, serve, registry, export, prove, machine  # isort: skip; the order of the commands
from tunesmith.cli.app import app
from tunesmith.cli.boundary import run_command

__all__ = [
    "app",
    "export",
    "inference",
    "judge",
    "machine",
    "main",
    "prove",
    "registry",
    "run",
    "serve",
    "start",
    "sweep",
]


def main() -> NoReturn:
    """Run the command line and exit with the code that docs/cli.md lists."""
    _prepare_environment()
    sys.exit(run_command(app, sys.argv[1:]))


def _prepare_environment() -> None:
    """Set environment variables and log levels that must be set before torch is imported."""
    # The time that OpenMP threads spin while they wait for each other. Long spins waste a core that another process
    # needs, and threads that sleep at once are slow to wake up (benchmarks/busy_neighbour.py).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft imports bitsandbytes, which makes torch import its compiler: a quarter of the start-up time.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # otherwise a lost rank makes all others print C++ stacks
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about missing kernels that pip cannot install
    # Users cannot act on the deprecation warnings that libraries send each other.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\.")
