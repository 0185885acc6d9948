"""Track a run in wandb: offline in the run's folder unless `WANDB_MODE` is set (`wandb sync` uploads it later).

A resumed run writes a second offline folder with the same id; `wandb sync --append` joins them.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.track.tracker import TrackedRun, set_default_environment


class WandbTracker:
    """Log a run to Weights & Biases; implements `Tracker`."""

    _run: Any

    def start(self, run: TrackedRun, run_id: str | None) -> str:
        """Start a run, or resume the one with an id."""
        set_default_environment({"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
        set_default_environment(
            {f"WANDB_{kind}_DIR": run.folder / kind.lower() for kind in ("CACHE", "CONFIG", "DATA")}
        )
        import wandb

        self._run = wandb.init(
            project=run.project, name=run.name, id=run_id or uuid.uuid4().hex[:8], resume="allow", dir=run.folder,
            config=dict(run.settings), settings=wandb.Settings(console="off", x_disable_stats=True),
        )  # fmt: skip
        return str(self._run.id)

    def log(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Log the values of a step."""
        self._run.log(dict(values), step=step)

    def log_file(self, file: Path) -> None:
        """Store a copy of a file."""
        import wandb

        artifact = wandb.Artifact(f"{self._run.id}-{file.name}", type="run-file")
        artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def finish(self, *, complete: bool) -> None:
        """Flush everything; an interrupted run gets exit code 75, the code of `Interrupted`."""
        self._run.finish(exit_code=0 if complete else 75)


TRACKER = WandbTracker
