"""Mirror versions and aliases to an MLflow registry. Our registry stays authoritative."""

from typing import Any

from tunesmith.core.errors import TunesmithError
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.progress import log
from tunesmith.registry.store import Registry, Version
from tunesmith.track.mlflow_store import open_client

_VERSION_TAG = "tunesmith.version"


def mirror(registry: Registry, version: Version, alias: str) -> None:
    """Register a version in MLflow and point the alias at it, if the recipe of any version of the model asks for it.

    The MLflow registry is at `MLFLOW_TRACKING_URI`, or else a database in the folder `mlflow` of our registry. MLflow
    has its own version numbers; the tag `tunesmith.version` holds ours. A repeated call changes nothing.

    Raises:
        TunesmithError: MLflow failed. Our registry has the version and the alias nevertheless.
    """
    # Any version, because a rollback can point the alias at an old version, whose recipe asked for no mirror.
    if not any(_wants_mirror(known) for known in registry.versions(version.model)):
        return
    folder = registry.root / "mlflow"
    try:
        with exclusive_lock(folder / "mirror.lock", wait=True):
            number = _update_mlflow(open_client(folder), registry, version, alias)
    except Exception as error:
        text = f"{version.model}@{alias} is version {version.number} here, but MLflow could not be updated: {error}"
        hint = f"repeat it when MLflow answers: tunesmith alias {version} {alias}"
        raise TunesmithError(text, where=str(folder), hint=hint, code="mirror-failed") from error
    log(f"mlflow: {version.model}@{alias} is now MLflow's version {number}")


def _wants_mirror(version: Version) -> bool:
    promote = (version.facts.get("recipe") or {}).get("promote") or {}
    return bool(promote.get("mirror") == "mlflow")


def _update_mlflow(client: Any, registry: Registry, version: Version, alias: str) -> str:
    """Create the model, the version and the alias in MLflow if they are missing; return MLflow's version number."""
    if not client.search_registered_models(filter_string=f"name='{version.model}'"):
        client.create_registered_model(version.model)
    existing = client.search_model_versions(f"name='{version.model}'")
    mirrored = next((known for known in existing if known.tags.get(_VERSION_TAG) == str(version.number)), None)
    if mirrored is None:
        verdict = version.facts.get("verdict") or {}
        tags = {_VERSION_TAG: str(version.number), "tunesmith.digest": version.digest}
        tags |= {"base": version.facts.get("base", ""), "verdict": verdict.get("verdict", "none")}
        mirrored = client.create_model_version(version.model, registry.folder(version).resolve().as_uri(), tags=tags)
    client.set_registered_model_alias(version.model, alias, mirrored.version)
    return str(mirrored.version)
