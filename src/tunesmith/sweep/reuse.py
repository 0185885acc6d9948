"""Reuse files of other trials: prepared data, and the answers of the base."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import check_folder, digest_file, new_folder, read_json, translate_enospc, write_json
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


def _reuse_first(sweep: Sweep, trial: Trial, artifact: str, take: Callable[[Sweep, Trial, Trial], bool]) -> None:
    run = sweep.run(trial)
    for other in sweep.trials:
        if other != trial and take(sweep, trial, other):
            write_json(_record_path(run), {**reused(run), artifact: other.folder})
            log(f"{artifact}: reused from {other.folder}")
            return


def _link_prepared(sweep: Sweep, trial: Trial, other: Trial) -> bool:
    """Link another trial's prepared data if it has the same inputs; return whether it has."""
    run, recipe, source = sweep.run(trial), sweep.recipe(trial), sweep.run(other)
    manifest = source.manifest("prepare")
    if manifest is None or changed_keys(manifest["inputs"], inputs(recipe, run), recipe):
        return False
    try:
        files = check_folder(source.stage("prepare"))["files"]
    except TunesmithError:
        return False  # damaged: this trial prepares its own
    with new_folder(run.stage("prepare"), **{key: manifest[key] for key in manifest if key != "files"}) as folder:
        for name in files:
            _link(source.stage("prepare") / name, folder / name)
    return True


def _link(source: Path, target: Path) -> None:
    """Hard-link a sealed file. Sealed files are never written to, so two runs can share one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)


def _copy_base_answers(sweep: Sweep, trial: Trial, other: Trial) -> bool:
    """Copy another trial's answers of the base, if its settings are the same; return whether they are.

    `evaluate` compares the key of the answers with this trial's prompts.
    """
    run = sweep.run(other)
    sealed = (run.manifest("evaluate") or {}).get("files", {}).get("base/generations.jsonl")
    source = run.evaluation("base") / "generations.jsonl"
    if sealed is None or not source.exists() or digest_file(source) != sealed["sha256"]:
        return False
    if _decides_base_answers(sweep.recipe(other)) != _decides_base_answers(sweep.recipe(trial)):
        return False
    target = sweep.run(trial).evaluation("base")
    with translate_enospc(target):
        target.mkdir(parents=True, exist_ok=True)
        # A copy, because generation changes this file in place. The key is written last: without it no line counts.
        shutil.copyfile(source, target / source.name)
    write_json(target / "key.json", read_json(run.evaluation("base") / "key.json"))
    return True


def _decides_base_answers(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that the base's answers depend on."""
    data = recipe.data.model_dump(exclude={"train_rows"})
    return {"model": recipe.model, "data": data, "seed": recipe.seed, "evaluate": recipe.evaluate}
