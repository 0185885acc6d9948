"""Open MLflow's store, by default an SQLite database, from several processes at once."""

import os
from pathlib import Path
from typing import Any

from tunesmith.core.locks import exclusive_lock
from tunesmith.track.tracker import set_default_environment


def open_client(folder: Path) -> Any:
    """Return an MlflowClient for `MLFLOW_TRACKING_URI` if the user has set it, else for a database in `folder`.

    A first request makes MLflow create its tables, and fails if two processes do so at once. Hence the lock.
    """
    set_default_environment({
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "GIT_PYTHON_REFRESH": "quiet",  # no warning if git is not installed
    })  # fmt: skip
    from mlflow import MlflowClient

    folder = folder.resolve()  # MLflow stores absolute paths
    with exclusive_lock(folder / "mlflow.lock", wait=True):
        if os.environ.get("MLFLOW_TRACKING_URI"):
            client = MlflowClient()
        else:
            uri = f"sqlite:///{folder}/mlflow.db"
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def find_or_create_experiment(client: Any, name: str, folder: Path) -> str:
    """Return the id of an experiment, created if it does not exist. Files of our own database go to `folder`."""
    with exclusive_lock(folder / "mlflow.lock", wait=True):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        is_ours = not os.environ.get("MLFLOW_TRACKING_URI")
        return str(client.create_experiment(name, (folder.resolve() / "artifacts").as_uri() if is_ours else None))
