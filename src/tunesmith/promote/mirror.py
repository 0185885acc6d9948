"""Versions and aliases of our registry, shown in an MLflow registry too. Ours stays the truth."""

from typing import Any

from tunesmith.core.errors import TunesmithError
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.progress import log
from tunesmith.registry.store import Registry, Version
from tunesmith.track.mlflow_store import open_client

_VERSION_TAG = "tunesmith.version"


def mirror(registry: Registry, version: Version, alias: str) -> None:
    """Let MLflow know the version and that the alias points at it, where a recipe of the model asks for that.

    The MLflow registry is a database in the folder `mlflow` of ours, or what `MLFLOW_TRACKING_URI` names. Its versions
    are numbered by itself; the tag `tunesmith.version` holds our number. Doing it again changes nothing.

    Raises:
        TunesmithError: MLflow could not do it. Our registry has the version and the alias all the same.
    """
    if not any(
        _wants_mirror(one) for one in registry.versions(version.model)
    ):  # an older one must be told too: of a rollback
        return
    folder = registry.root / "mlflow"
    try:
        with exclusive_lock(folder / "mirror.lock", wait=True):
            number = _update_mlflow(open_client(folder), registry, version, alias)
    except Exception as error:
        raise TunesmithError(
            f"{version.model}@{alias} is version {version.number}, but MLflow was not told: {error}",
            where=str(folder),
            hint=f"tunesmith promote {version} --alias {alias}",
        ) from error
    log(f"mlflow: {version.model}@{alias} is now version {number} there")


def _wants_mirror(version: Version) -> bool:
    promote = (version.facts.get("recipe") or {}).get("promote") or {}
    return bool(promote.get("mirror") == "mlflow")


def _update_mlflow(client: Any, registry: Registry, version: Version, alias: str) -> str:
    """Make model, version and alias in MLflow unless they are there; return its number of the version."""
    if not client.search_registered_models(filter_string=f"name='{version.model}'"):
        client.create_registered_model(version.model)
    known = client.search_model_versions(f"name='{version.model}'")
    found = next((one for one in known if one.tags.get(_VERSION_TAG) == str(version.number)), None)
    if found is None:
        verdict = version.facts.get("verdict") or {}
        tags = {
            _VERSION_TAG: str(version.number),
            "tunesmith.digest": version.digest,
            "base": version.facts.get("base", ""),
        }
        found = client.create_model_version(
            version.model, registry.folder(version).resolve().as_uri(),
            tags={**tags, "verdict": verdict.get("verdict", "none")},
        )  # fmt: skip
    client.set_registered_model_alias(version.model, alias, found.version)
    return str(found.version)
