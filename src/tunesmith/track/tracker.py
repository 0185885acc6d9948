"""What a tracker is to us: one small interface, and the table of those there are."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from tunesmith.core.errors import RecipeError, install_hint

# The packages that each needs; their extra has the tracker's name.
TRACKERS = {
    "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run as a tracker knows it. `folder` is absolute and the tracker's own; `settings` is the recipe, flat."""

    project: str
    name: str
    folder: Path
    settings: Mapping[str, Any]


class Tracker(Protocol):
    """One tracker, in a process of its own. Any method may fail: then it is dropped, and the run goes on."""

    def start(self, run: TrackedRun, known: str | None) -> str:
        """Begin the run, or go on with the one `known` by an id that was returned before; return its id."""

    def log(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Note values of a step; `time` is in seconds since 1970."""

    def artifact(self, file: Path) -> None:
        """Keep a copy of a file."""

    def finish(self, *, complete: bool) -> None:
        """Write everything out. Not complete: the run was interrupted and may go on."""


def load_tracker(name: str) -> Tracker:
    """Return a tracker by name, its package imported."""
    tracker: Tracker = import_module(f"tunesmith.track.to_{name}").ADAPTER()
    return tracker


def check_installed(names: Sequence[str], mirror: str | None = None) -> None:
    """Raise RecipeError for the first of a recipe's trackers and mirror whose package is not installed."""
    for name, where in [*((name, "trackers") for name in names), *([(mirror, "promote.mirror")] if mirror else [])]:
        missing = [package for package in TRACKERS[name] if importlib.util.find_spec(package) is None]
        if missing:
            raise RecipeError(
                f"`{name}` needs {' and '.join(missing)}, which is not installed",
                where=where,
                hint=f"{install_hint(name)}; or leave it out of the recipe",
            )


def set_default_environment(settings: Mapping[str, object]) -> None:
    """Set environment variables of a tracker that the user has not set: by default all stays in the run's folder."""
    for name, value in settings.items():
        os.environ.setdefault(name, str(value))
