"""Change the records of a run to those of an earlier version of tunesmith."""

from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML

from tunesmith.core.files import read_json, write_json
from tunesmith.core.rundir import RunDir

Settings = dict[str, Any]


def without(key: str) -> Callable[[Settings], None]:
    """Return a change that removes a dotted key, in lists from each item: the earlier version lacked the key."""

    def remove(settings: Settings) -> None:
        for section in _sections(settings, key.split(".")[:-1]):
            section.pop(key.rpartition(".")[2], None)

    return remove


def with_value(key: str, value: Any) -> Callable[[Settings], None]:
    """Return a change that sets a dotted key: the earlier version had another default, or a key removed since."""

    def change(settings: Settings) -> None:
        for section in _sections(settings, key.split(".")[:-1]):
            section[key.rpartition(".")[2]] = value

    return change


def record(run: RunDir, change: Callable[[Settings], None]) -> None:
    """Apply a change to the settings in all records of a run."""
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
    """Rename the folder of a run, as an earlier version named it; return the run."""
    return RunDir(run.path.rename(run.path.with_name(name)))


def _sections(settings: Any, keys: list[str]) -> list[Settings]:
    """Return the sections at a path: none, one, or those of a list."""
    if isinstance(settings, list):
        return [section for item in settings for section in _sections(item, keys)]
    if not isinstance(settings, dict):
        return []
    return _sections(settings.get(keys[0]), keys[1:]) if keys else [settings]
