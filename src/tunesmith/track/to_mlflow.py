"""Runs in MLflow: a database in the run's folder, or what `MLFLOW_TRACKING_URI` names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.track.mlflow_store import find_or_create_experiment, open_store
from tunesmith.track.tracker import TrackedRun

_PARAMETERS_AT_ONCE = 100
_LONGEST_PARAMETER = 500


class MlflowAdapter:
    """See `Tracker`."""

    _client: Any
    _id: str

    def start(self, run: TrackedRun, known: str | None) -> str:
        """Begin the run, or go on with the one of an id."""
        self._client = open_store(run.folder)
        if known is not None:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return known
        from mlflow.entities import Param

        made = self._client.create_run(
            find_or_create_experiment(self._client, run.project, run.folder), run_name=run.name
        )
        self._id = made.info.run_id
        parameters = [Param(name, str(value)[:_LONGEST_PARAMETER]) for name, value in run.settings.items()]
        for some in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self._id, params=parameters[some : some + _PARAMETERS_AT_ONCE])
        return self._id

    def log(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Note values of a step."""
        from mlflow.entities import Metric

        at = round(1000 * time)
        self._client.log_batch(self._id, [Metric(name, value, at, step) for name, value in values.items()])

    def artifact(self, file: Path) -> None:
        """Keep a copy of a file."""
        self._client.log_artifact(self._id, str(file))

    def finish(self, *, complete: bool) -> None:
        """Say how it ended."""
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")


ADAPTER = MlflowAdapter
