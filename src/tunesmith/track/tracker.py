"""The interface of a tracker, and the table of trackers."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from tunesmith.core.errors import RecipeError, install_hint

# The packages that each tracker needs. The extra that installs them has the tracker's name.
TRACKERS = {
    "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run, as given to a tracker.

    Attributes:
        folder: the tracker's own folder in the run, an absolute path.
        settings: the recipe as {dotted key: value}.
    """

    project: str
    name: str
    folder: Path
    settings: Mapping[str, Any]


class Tracker(Protocol):
    """A tracker, used in a separate process. If a method raises, the tracker is dropped and the run continues."""

    def start(self, run: TrackedRun, run_id: str | None) -> str:
        """Start a run and return its id, or resume the run with an id that an earlier call returned."""

    def log(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Log the values of a step; `time` is in seconds since 1970."""

    def log_file(self, file: Path) -> None:
        """Store a copy of a file."""

    def finish(self, *, complete: bool) -> None:
        """Flush everything. If the run is not complete, it was interrupted and may be resumed."""


def load_tracker(name: str) -> Tracker:
    """Import a tracker's package and return the tracker."""
    tracker: Tracker = import_module(f"tunesmith.track.to_{name}").TRACKER()
    return tracker


def check_installed(names: Sequence[str], mirror: str | None = None) -> None:
    """Raise RecipeError if a package that one of the trackers or the registry mirror needs is not installed."""
    for name, where in [*((name, "trackers") for name in names), *([(mirror, "promote.mirror")] if mirror else [])]:
        missing = [package for package in TRACKERS[name] if importlib.util.find_spec(package) is None]
        if missing:
            raise RecipeError(
                f"`{name}` needs {' and '.join(missing)}, which is not installed",
                where=where,
                hint=f"{install_hint(name)}; or leave it out of the recipe",
                code="missing-package",
            )


def set_default_environment(variables: Mapping[str, object]) -> None:
    """Set environment variables that the user has not set, so that by default everything stays in the run's folder."""
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))
