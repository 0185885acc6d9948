"""Track a run in trackio: below `TRACKIO_DIR`, by default in the run's folder (`TRACKIO_DIR=... trackio show`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.track.tracker import TrackedRun, set_default_environment


class TrackioTracker:
    """Log a run to trackio; implements `Tracker`."""

    _run: Any

    def start(self, run: TrackedRun, run_id: str | None) -> str:
        """Start or resume the run, which trackio identifies by its name."""
        set_default_environment({"TRACKIO_DIR": run.folder})
        import trackio

        name = run_id or run.name
        self._run = trackio.init(
            project=run.project, name=name, config=dict(run.settings), resume="allow" if run_id else "never",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        return name

    def log(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Log the values of a step."""
        self._run.log(dict(values), step=step)

    def log_file(self, file: Path) -> None:
        """Store a copy of a file as an artifact, which trackio deduplicates by content."""
        self._run.log_artifact(str(file), name=file.name, type="run-file")

    def finish(self, *, complete: bool) -> None:
        """Wait until everything is written."""
        self._run.finish()


TRACKER = TrackioTracker
