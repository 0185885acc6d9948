"""What a rung takes over from its neighbours instead of making it again: prepared data, and the base's answers."""

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
    only_writer,
    out_of_space_explained,
    read_json,
    write_json,
)
from tunesmith.core.progress import say
from tunesmith.core.rundir import RunDir
from tunesmith.data.inputs import inputs
from tunesmith.ladder.rungs import Ladder, Rung
from tunesmith.recipe.schema import Recipe


def share(ladder: Ladder, rung: Rung) -> None:
    """Give a rung what a neighbour has that it would make to the same bytes. Nothing that it has is replaced."""
    run = ladder.run(rung)
    with only_writer(run.lock):
        if run.manifest("prepare") is None:
            _share(ladder, rung, "prepared data", _prepared)
        if not (run.subject("base") / "generations.jsonl").exists():
            _share(ladder, rung, "answers of the base", _answers)


def taken_over(run: RunDir) -> dict[str, str]:
    """Return what a rung took over, and from which run folder beside its own."""
    return dict(read_json(_note(run))) if _note(run).exists() else {}


def _note(run: RunDir) -> Path:
    return run.path / "logs" / "shared.json"


def _share(ladder: Ladder, rung: Rung, what: str, take: Callable[[Ladder, Rung, RunDir], bool]) -> None:
    run = ladder.run(rung)
    for other in ladder.rungs:
        if other != rung and take(ladder, rung, ladder.run(other)):
            write_json(_note(run), {**taken_over(run), what: other.folder})
            say(f"{what}: those of {other.folder}")
            return


def _prepared(ladder: Ladder, rung: Rung, other: RunDir) -> bool:
    """Link a neighbour's sealed `prepare` if it was made from the same inputs, the tokenizer's digest among them."""
    run, manifest = ladder.run(rung), other.manifest("prepare")
    if manifest is None or manifest["inputs"] != inputs(ladder.recipe(rung), run):
        return False
    try:
        check_folder(other.stage("prepare"))
    except TunesmithError:
        return False  # damaged: this rung makes its own
    facts = {key: value for key, value in manifest.items() if key != "files"}
    with new_folder(run.stage("prepare"), **facts) as folder:
        for path in _files(other.stage("prepare")):
            _link(path, folder / path.relative_to(other.stage("prepare")))
    return True


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _link(source: Path, target: Path) -> None:
    """Make a sealed file appear a second time; nobody writes to it, so both names may stand for the same bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that has no links
        shutil.copyfile(source, target)


def _answers(ladder: Ladder, rung: Rung, other: RunDir) -> bool:
    """Copy a neighbour's finished answers of the base. Whether they answer our questions, `evaluate` asks their key."""
    sealed = (other.manifest("evaluate") or {}).get("files", {}).get("base/generations.jsonl")
    source = other.subject("base") / "generations.jsonl"
    if sealed is None or not source.exists() or digest_file(source) != sealed["sha256"]:
        return False
    theirs = next(ladder.recipe(one) for one in ladder.rungs if ladder.run(one).path == other.path)
    if _asked(theirs) != _asked(ladder.recipe(rung)):
        return False
    target = ladder.run(rung).subject("base")
    with out_of_space_explained(target):
        target.mkdir(parents=True, exist_ok=True)
        # A copy: the generator cuts and continues this file in place. The key comes last: without it no line counts.
        shutil.copyfile(source, target / source.name)
    write_json(target / "key.json", read_json(other.subject("base") / "key.json"))
    return True


def _asked(recipe: Recipe) -> dict[str, Any]:
    """Return what the base's answers follow from."""
    return {
        "model": recipe.model,
        "data": recipe.data.model_dump(exclude={"train_rows"}),
        "seed": recipe.seed,
        "evaluate": recipe.evaluate,
    }
