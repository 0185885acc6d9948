"""Runs in trackio: below `TRACKIO_DIR`, by default in the run's folder (`TRACKIO_DIR=... trackio show`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.track.tracker import TrackedRun, set_default_environment


class TrackioAdapter:
    """See `Tracker`."""

    _run: Any

    def start(self, run: TrackedRun, known: str | None) -> str:
        """Begin the run, or go on with it: trackio knows it by its name."""
        set_default_environment({"TRACKIO_DIR": run.folder})
        import trackio

        name = known or run.name
        self._run = trackio.init(
            project=run.project, name=name, config=dict(run.settings), resume="allow" if known else "never",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        return name

    def log(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Note values of a step."""
        self._run.log(dict(values), step=step)

    def artifact(self, file: Path) -> None:
        """Keep a copy of a file, by content."""
        self._run.log_artifact(str(file), name=file.name, type="run-file")

    def finish(self, *, complete: bool) -> None:
        """Wait for what is still being written."""
        self._run.finish()


ADAPTER = TrackioAdapter
