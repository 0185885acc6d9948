"""Track a run in MLflow: in a database in the run's folder, or at `MLFLOW_TRACKING_URI`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.track.mlflow_store import find_or_create_experiment, open_client
from tunesmith.track.tracker import TrackedRun

_BATCH_SIZE = 100  # parameters per request, the limit of MLflow
_MAX_PARAMETER_LENGTH = 500  # characters, the limit of older MLflow servers


class MlflowTracker:
    """Log a run to MLflow; implements `Tracker`."""

    _client: Any
    _id: str

    def start(self, run: TrackedRun, run_id: str | None) -> str:
        """Start a run, or resume the one with an id."""
        self._client = open_client(run.folder)
        if run_id is not None:
            self._id = run_id
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        from mlflow.entities import Param

        made = self._client.create_run(
            find_or_create_experiment(self._client, run.project, run.folder), run_name=run.name
        )
        self._id = made.info.run_id
        parameters = [Param(name, str(value)[:_MAX_PARAMETER_LENGTH]) for name, value in run.settings.items()]
        for start in range(0, len(parameters), _BATCH_SIZE):
            self._client.log_batch(self._id, params=parameters[start : start + _BATCH_SIZE])
        return self._id

    def log(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Log the values of a step."""
        from mlflow.entities import Metric

        milliseconds = round(1000 * time)
        self._client.log_batch(self._id, [Metric(name, value, milliseconds, step) for name, value in values.items()])

    def log_file(self, file: Path) -> None:
        """Store a copy of a file."""
        self._client.log_artifact(self._id, str(file))

    def finish(self, *, complete: bool) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")


TRACKER = MlflowTracker
