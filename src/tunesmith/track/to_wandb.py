"""Runs in wandb: offline in the run's folder unless `WANDB_MODE` says otherwise (`wandb sync` sends them later).

A run that goes on writes a second offline folder under the same id; `wandb sync --append` joins them.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.track.tracker import TrackedRun, set_default_environment


class WandbAdapter:
    """See `Tracker`."""

    _run: Any

    def start(self, run: TrackedRun, known: str | None) -> str:
        """Begin the run, or go on with the one of an id."""
        set_default_environment({"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
        set_default_environment(
            {f"WANDB_{what}_DIR": run.folder / what.lower() for what in ("CACHE", "CONFIG", "DATA")}
        )
        import wandb

        self._run = wandb.init(
            project=run.project, name=run.name, id=known or uuid.uuid4().hex[:8], resume="allow", dir=run.folder,
            config=dict(run.settings), settings=wandb.Settings(console="off", x_disable_stats=True),
        )  # fmt: skip
        return str(self._run.id)

    def log(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Note values of a step."""
        self._run.log(dict(values), step=step)

    def artifact(self, file: Path) -> None:
        """Keep a copy of a file."""
        import wandb

        artifact = wandb.Artifact(f"{self._run.id}-{file.name}", type="run-file")
        artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def finish(self, *, complete: bool) -> None:
        """Write everything out; an interrupted run has exit code 75, as ours has."""
        self._run.finish(exit_code=0 if complete else 75)


ADAPTER = WandbAdapter
