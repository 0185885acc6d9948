"""The stage `prepare`: write the examples and tokens of each split, a ledger of all rows, and the manifest last."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import new_folder, translate_enospc, write_chunks, write_json
from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.progress import Progress, log
from tunesmith.core.rundir import RunDir
from tunesmith.data.dataset import Dataset, UsedRows, build_dataset, build_set
from tunesmith.data.inputs import inputs, set_inputs
from tunesmith.data.rehearsal import rehearse
from tunesmith.data.row_columns import source_columns, splits_with_columns
from tunesmith.data.sources import resolve_commits
from tunesmith.data.spool import Spool
from tunesmith.data.token_file import write_tokens
from tunesmith.data.token_view import token_view
from tunesmith.data.trained_rows import TRAINED_ROWS, write_trained_rows
from tunesmith.fetch.reference import pinned_base, resolve_base
from tunesmith.recipe.also import recipe_of_set
from tunesmith.recipe.held_out import all_sources
from tunesmith.recipe.schema import AlsoBase, Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter

_SAMPLES = 3


def prepare(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Prepare the rows of a recipe in `run`; return the manifest.

    Raises:
        DataError: the data cannot be read or used, see `build_dataset`; a metric of the recipe rejects a reference.
        RecipeError: a custom metric fails.
    """
    start = time.monotonic()
    stage_inputs = inputs(recipe, run)
    base = resolve_base(run, recipe.model.base)
    tokenizer = load_tokenizer(base, recipe.model)
    task = task_for(recipe.data, tokenizer)
    progress = Progress("prepare", unit="rows")
    with translate_enospc(run.stage("prepare")):
        run.path.mkdir(parents=True, exist_ok=True)
        spool = Spool(run.path)
        dataset = build_dataset(recipe, task, folder=run.recipe_folder, model=base, on_row=progress.update, spool=spool)
    progress.close()
    rehearse(recipe, task, dataset, run, is_prepared=False)
    seconds = round(time.monotonic() - start, 3)
    facts = {"stage": "prepare", "inputs": stage_inputs, "seconds": seconds, **dataset.facts()}
    facts |= {
        "base": pinned_base(run, base),
        "commits": resolve_commits(all_sources(recipe.data), folder=run.recipe_folder),
    }
    with new_folder(run.stage("prepare"), **facts) as folder:
        _write(folder, dataset, tokenizer)
        _write_columns(folder, dataset, recipe, run)
        write_trained_rows(folder / TRAINED_ROWS, (str(row.entry.id) for row in dataset.used["train"]), base)
    prepare_sets(recipe, run, dataset)
    return run.manifest("prepare") or {}


@contextmanager
def errors_of_set(name: str) -> Iterator[None]:
    """Name a further held-out set in the errors of a block, which speak of `data` and of test rows."""
    try:
        yield
    except TunesmithError as error:
        error.message = f"held-out set `{name}`: {error.message}"
        raise


def prepare_sets(recipe: Recipe, run: RunDir, trained: UsedRows) -> None:
    """Prepare those further held-out sets that are new or have changed, each in a folder of its own.

    They are no part of the stage `prepare`, so a set can be added after training.

    Args:
        trained: the rows of the run, for a warning of training rows in a set.

    Raises:
        DataError: the rows of a set cannot be read or used; a metric of the set rejects a reference.
        RecipeError: a custom metric fails.
    """
    wanted = set_inputs(recipe, run)
    for entry in recipe.evaluate.also:
        target = run.further_set(entry.name)
        if (target.manifest("prepare") or {}).get("inputs") == wanted[entry.name]:
            continue
        with errors_of_set(entry.name):
            _prepare_set(recipe, entry, run, trained, wanted[entry.name])


def _prepare_set(recipe: Recipe, entry: AlsoBase, run: RunDir, trained: UsedRows, stage_inputs: dict[str, Any]) -> None:
    """Write the rows of a set, with the manifest last."""
    own, base = recipe_of_set(recipe, entry), resolve_base(run, recipe.model.base)
    target = run.further_set(entry.name)
    tokenizer = load_tokenizer(base, recipe.model)
    task = task_for(own.data, tokenizer)
    with translate_enospc(target.path):
        target.path.mkdir(parents=True, exist_ok=True)
        dataset = build_set(
            own, task, folder=run.recipe_folder, model=base, trained=trained, name=entry.name,
            spool=Spool(target.path),
        )  # fmt: skip
    rehearse(own, task, dataset, target, is_prepared=False)
    facts = {"inputs": stage_inputs, **dataset.facts()}
    facts["commits"] = resolve_commits(own.data.source, folder=run.recipe_folder)
    with new_folder(target.stage("prepare"), **facts) as folder:
        _write(folder, dataset, tokenizer)
        _write_columns(folder, dataset, own, target)
    log(f"prepared {len(dataset.used['test']):,} rows of the held-out set `{entry.name}`")


def _write(folder: Path, dataset: Dataset, tokenizer: TokenizerAdapter) -> None:
    write_jsonl(folder / "rows.jsonl", (entry.to_json() for entry in dataset.entries))
    spool, samples = dataset.spool, []
    for name in dataset.used:
        indices = dataset.spool_indices(name)
        write_chunks(folder / "examples" / f"{name}.jsonl", spool.examples(indices))
        write_tokens(folder / "tokens" / f"{name}.safetensors", spool.rows(indices))
        entries = dict(zip(indices, dataset.ledger_entries(name), strict=True))  # a row may be used twice
        for index, entry in list(entries.items())[:_SAMPLES]:
            tokens = token_view(spool.tokens(index, str(entry.id)), tokenizer)
            samples.append({"split": name, "row": entry.row, "block": entry.block, "id": entry.id, "tokens": tokens})
    write_json(folder / "samples.json", samples)


def _write_columns(folder: Path, dataset: Dataset, recipe: Recipe, run: RunDir) -> None:
    """Write the source columns of those rows that a custom metric sees."""
    for split in splits_with_columns(recipe, run.recipe_folder):
        numbers = {entry.row for entry in dataset.ledger_entries(split)}
        columns = source_columns(recipe, run.recipe_folder, numbers)
        lines = ({"row": number, "columns": values} for number, values in columns)
        write_jsonl(folder / "columns" / f"{split}.jsonl", lines)
