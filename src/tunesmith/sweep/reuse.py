"""Reuse files of other trials: prepared data, and the answers of the base."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import (
    MANIFEST,
    check_folder,
    digest_file,
    new_folder,
    read_json,
    translate_enospc,
    write_json,
)
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.data.inputs import inputs
from tunesmith.recipe.changes import changed_keys
from tunesmith.recipe.schema import Recipe
from tunesmith.sweep.axes import Sweep, Trial


def reuse(sweep: Sweep, trial: Trial) -> None:
    """Link or copy files of other trials that this trial's stages would write with the same bytes. Replaces nothing."""
    run = sweep.run(trial)
    with exclusive_lock(run.lock):
        if run.manifest("prepare") is None:
            _reuse_first(sweep, trial, "prepared data", _link_prepared)
        if not (run.evaluation("base") / "generations.jsonl").exists():
            _reuse_first(sweep, trial, "answers of the base", _copy_base_answers)


def reused(run: RunDir) -> dict[str, str]:
    """Return what a trial has reused, as {artifact: folder of the other trial}."""
    return dict(read_json(_record_path(run))) if _record_path(run).exists() else {}


def _record_path(run: RunDir) -> Path:
    return run.path / "logs" / "reused.json"


def _reuse_first(sweep: Sweep, trial: Trial, artifact: str, take: Callable[[Sweep, Trial, RunDir], bool]) -> None:
    run = sweep.run(trial)
    for other in sweep.trials:
        if other != trial and take(sweep, trial, sweep.run(other)):
            write_json(_record_path(run), {**reused(run), artifact: other.folder})
            log(f"{artifact}: reused from {other.folder}")
            return


def _link_prepared(sweep: Sweep, trial: Trial, other: RunDir) -> bool:
    """Link another trial's prepared data if it has the same inputs; return whether it has."""
    run, manifest = sweep.run(trial), other.manifest("prepare")
    recipe = sweep.recipe(trial)
    if manifest is None or changed_keys(manifest["inputs"], inputs(recipe, run), recipe):
        return False
    try:
        check_folder(other.stage("prepare"))
    except TunesmithError:
        return False  # damaged: this trial prepares its own
    facts = {key: value for key, value in manifest.items() if key != "files"}
    with new_folder(run.stage("prepare"), **facts) as folder:
        for path in _files(other.stage("prepare")):
            _link(path, folder / path.relative_to(other.stage("prepare")))
    return True


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _link(source: Path, target: Path) -> None:
    """Hard-link a sealed file. Sealed files are never written to, so two runs can share one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)


def _copy_base_answers(sweep: Sweep, trial: Trial, other: RunDir) -> bool:
    """Copy another trial's answers of the base, if its settings are the same; return whether they are.

    `evaluate` compares the key of the answers with this trial's prompts.
    """
    sealed = (other.manifest("evaluate") or {}).get("files", {}).get("base/generations.jsonl")
    source = other.evaluation("base") / "generations.jsonl"
    if sealed is None or not source.exists() or digest_file(source) != sealed["sha256"]:
        return False
    other_recipe = next(sweep.recipe(trial) for trial in sweep.trials if sweep.run(trial).path == other.path)
    if _decides_base_answers(other_recipe) != _decides_base_answers(sweep.recipe(trial)):
        return False
    target = sweep.run(trial).evaluation("base")
    with translate_enospc(target):
        target.mkdir(parents=True, exist_ok=True)
        # A copy, because generation changes this file in place. The key is written last: without it no line counts.
        shutil.copyfile(source, target / source.name)
    write_json(target / "key.json", read_json(other.evaluation("base") / "key.json"))
    return True


def _decides_base_answers(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that the base's answers depend on."""
    return {
        "model": recipe.model,
        "data": recipe.data.model_dump(exclude={"train_rows"}),
        "seed": recipe.seed,
        "evaluate": recipe.evaluate,
    }
