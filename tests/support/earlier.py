"""Runs as other versions of tunesmith would have recorded them."""

from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML

from tunesmith.core.files import read_json, write_json
from tunesmith.core.rundir import RunDir

Settings = dict[str, Any]


def without(key: str) -> Callable[[Settings], None]:
    """Return what removes a dotted key, also from all items of a list: an earlier version did not know it."""

    def remove(settings: Settings) -> None:
        for section in _sections(settings, key.split(".")[:-1]):
            section.pop(key.rpartition(".")[2], None)

    return remove


def with_value(key: str, value: Any) -> Callable[[Settings], None]:
    """Return what sets a dotted key: an earlier version had another default, or a key that is gone."""

    def change(settings: Settings) -> None:
        for section in _sections(settings, key.split(".")[:-1]):
            section[key.rpartition(".")[2]] = value

    return change


def record(run: RunDir, change: Callable[[Settings], None]) -> None:
    """Change the settings in all records of a run."""
    for stage in ("prepare", "train", "evaluate"):
        if (manifest := run.manifest(stage)) is not None:
            change(manifest["inputs"])
            write_json(run.stage(stage) / "manifest.json", manifest)
    environment = read_json(run.environment)
    if isinstance(environment["settings"], dict):
        change(environment["settings"])
        write_json(run.environment, environment)
    yaml = YAML()
    resolved = yaml.load(run.resolved_recipe)
    change(resolved)
    yaml.dump(resolved, run.resolved_recipe)


def renamed(run: RunDir, name: str = "00000000") -> RunDir:
    """Return the run after its folder got the name that another version would have given it."""
    return RunDir(run.path.rename(run.path.with_name(name)))


def _sections(settings: Any, keys: list[str]) -> list[Settings]:
    """Return the sections at a path: none, one, or those in a list."""
    if isinstance(settings, list):
        return [found for item in settings for found in _sections(item, keys)]
    if not isinstance(settings, dict):
        return []
    return _sections(settings.get(keys[0]), keys[1:]) if keys else [settings]
