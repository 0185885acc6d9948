"""STAGE 1: rows -> Examples -> splits -> Tokens on disk, a ledger of every row, and the manifest last."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.core.files import new_folder, write_json, write_jsonl
from tunesmith.core.progress import Progress
from tunesmith.core.records import Tokens
from tunesmith.core.rundir import RunDir
from tunesmith.data.batches import write_tokens
from tunesmith.data.gather import Gathered, gather
from tunesmith.data.inputs import inputs
from tunesmith.data.token_view import token_view
from tunesmith.fetch.reference import resolve
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.markup import codec_of
from tunesmith.tasks.tokenizer import Codec

_SAMPLES = 3


def prepare(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Prepare the rows of a recipe in `run`; return the manifest.

    Raises:
        DataError: the data cannot be read or used; see `gather`.
    """
    began = time.monotonic()
    stated = inputs(recipe, run)
    codec = codec_of(resolve(recipe.model.base, relative_to=run.origin), recipe.model.chat_markup)
    task = task_for(recipe.data, codec)
    progress = Progress("prepare", unit="rows")
    gathered = gather(recipe, task, folder=run.origin, seen=progress.update)
    progress.close()
    facts = {"stage": "prepare", "inputs": stated, "seconds": round(time.monotonic() - began, 3), **gathered.facts()}
    with new_folder(run.stage("prepare"), **facts) as folder:
        _write(folder, gathered, codec)
    return run.manifest("prepare") or {}


def _write(folder: Path, gathered: Gathered, codec: Codec) -> None:
    write_jsonl(folder / "rows.jsonl", (asdict(entry) for entry in gathered.entries))
    samples = []
    for name, chosen in gathered.used.items():
        write_jsonl(folder / "examples" / f"{name}.jsonl", (r.example.to_json() for r in chosen if r.example))
        tokens: list[Tokens] = [r.tokens for r in chosen if r.tokens]
        write_tokens(folder / "tokens" / f"{name}.safetensors", tokens)
        first = list({(r.entry.row, r.entry.block): r for r in chosen}.values())[:_SAMPLES]  # a row may be used twice
        samples += [
            {"split": name, "row": r.entry.row, "block": r.entry.block, "id": r.entry.id,
             "tokens": token_view(r.tokens, codec)}
            for r in first
            if r.tokens
        ]  # fmt: skip
    write_json(folder / "samples.json", samples)
