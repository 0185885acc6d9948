"""STAGE 1: rows -> Examples -> splits -> Tokens on disk, a ledger of every row, and the manifest last."""

import time
from pathlib import Path
from typing import Any

from tunesmith.core.files import new_folder, translate_enospc, write_chunks, write_json
from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.progress import Progress
from tunesmith.core.rundir import RunDir
from tunesmith.data.dataset import Dataset, build_dataset
from tunesmith.data.inputs import inputs
from tunesmith.data.rehearsal import rehearse
from tunesmith.data.sources import resolve_commits
from tunesmith.data.spool import Spool
from tunesmith.data.token_file import write_tokens
from tunesmith.data.token_view import token_view
from tunesmith.data.trained_rows import TRAINED_ROWS, write_trained_rows
from tunesmith.fetch.reference import pinned_base, resolve_base
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.chatml import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter

_SAMPLES = 3


def prepare(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Prepare the rows of a recipe in `run`; return the manifest.

    Raises:
        DataError: the data cannot be read or used, see `build_dataset`; a metric of the recipe refuses a reference.
        RecipeError: a metric of the user's own fails.
    """
    began = time.monotonic()
    stated = inputs(recipe, run)
    base = resolve_base(run, recipe.model.base)
    tokenizer = load_tokenizer(base, recipe.model.chat_markup)
    task = task_for(recipe.data, tokenizer)
    progress = Progress("prepare", unit="rows")
    with translate_enospc(run.stage("prepare")):
        run.path.mkdir(parents=True, exist_ok=True)
        shelf = Spool(run.path)
        gathered = build_dataset(recipe, task, folder=run.recipe_folder, model=base, seen=progress.update, shelf=shelf)
    progress.close()
    rehearse(recipe, task, gathered, folder=run.recipe_folder)
    facts = {"stage": "prepare", "inputs": stated, "seconds": round(time.monotonic() - began, 3), **gathered.facts()}
    facts |= {"base": pinned_base(run, base), "commits": resolve_commits(recipe.data.source, folder=run.recipe_folder)}
    with new_folder(run.stage("prepare"), **facts) as folder:
        _write(folder, gathered, tokenizer)
        write_trained_rows(folder / TRAINED_ROWS, (str(row.entry.id) for row in gathered.used["train"]), base)
    return run.manifest("prepare") or {}


def _write(folder: Path, gathered: Dataset, tokenizer: TokenizerAdapter) -> None:
    write_jsonl(folder / "rows.jsonl", (entry.to_json() for entry in gathered.entries))
    shelf, samples = gathered.shelf, []
    for name, chosen in gathered.used.items():
        places = gathered.places(name)
        write_chunks(folder / "examples" / f"{name}.jsonl", shelf.examples(places))
        write_tokens(folder / "tokens" / f"{name}.safetensors", shelf.rows(places))
        first = list({(r.entry.row, r.entry.block): r for r in chosen}.values())[:_SAMPLES]  # a row may be used twice
        samples += [
            {"split": name, "row": r.entry.row, "block": r.entry.block, "id": r.entry.id,
             "tokens": token_view(shelf.tokens(r.place, str(r.entry.id)), tokenizer)}
            for r in first
            if r.place is not None
        ]  # fmt: skip
    write_json(folder / "samples.json", samples)
