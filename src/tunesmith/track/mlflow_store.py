"""MLflow on SQLite: where it is, and how it is opened by several processes at once."""

import os
from pathlib import Path
from typing import Any

from tunesmith.core.locks import exclusive_lock
from tunesmith.track.tracker import set_default_environment


def open_store(folder: Path) -> Any:
    """Return an MlflowClient: of `MLFLOW_TRACKING_URI` where the user has set it, else of a database in `folder`.

    MLflow makes its tables when it is first asked, and dies when two processes do that at once: hence the lock.
    """
    set_default_environment({
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "GIT_PYTHON_REFRESH": "quiet",  # a machine without git is no news
    })  # fmt: skip
    from mlflow import MlflowClient

    folder = folder.resolve()  # MLflow keeps absolute paths
    with exclusive_lock(folder / "mlflow.lock", wait=True):
        if os.environ.get("MLFLOW_TRACKING_URI"):
            client = MlflowClient()
        else:
            store = f"sqlite:///{folder}/mlflow.db"
            client = MlflowClient(tracking_uri=store, registry_uri=store)
        client.search_experiments(max_results=1)
    return client


def find_or_create_experiment(client: Any, name: str, folder: Path) -> str:
    """Return the id of an experiment, made if need be; its files are kept in `folder` where the database is ours."""
    with exclusive_lock(folder / "mlflow.lock", wait=True):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        ours = not os.environ.get("MLFLOW_TRACKING_URI")
        return str(client.create_experiment(name, (folder.resolve() / "artifacts").as_uri() if ours else None))
