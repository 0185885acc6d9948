"""STAGE 1: rows -> Examples -> splits -> Tokens on disk, a ledger of every row, and the manifest last."""

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.files import new_folder, write_json, write_jsonl
from tunesmith.core.progress import Progress
from tunesmith.core.records import Tokens
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.data.batches import write_tokens
from tunesmith.data.examine import Entry, Examined, empty_splits, examine, histogram, token_view
from tunesmith.data.inputs import inputs
from tunesmith.data.split import choose
from tunesmith.fetch.reference import resolve
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.markup import codec_of
from tunesmith.tasks.tokenizer import Codec

_SAMPLES = 3


def prepare(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Prepare the rows of a recipe in `run`; return the manifest.

    Raises:
        DataError: the data cannot be read, or too many rows cannot be used, or a split has no rows.
    """
    began = time.monotonic()
    stated = inputs(recipe, run)
    codec = codec_of(resolve(recipe.model.base, relative_to=run.origin), recipe.model.chat_markup)
    task = task_for(recipe.data, codec)
    progress = Progress("prepare", unit="rows")
    rows: list[Examined] = []
    for row in examine(recipe, task, folder=run.origin):
        rows.append(row)
        progress.update(len(rows))
    progress.close()
    rows = _limited(rows, recipe)
    kept = {name: [r for r in rows if r.entry.split == name and r.entry.status in ("kept", "cut")] for name in SPLITS}
    missing = empty_splits({name: len(kept[name]) for name in SPLITS}, recipe.data.split)
    if missing:
        counts = ", ".join(f"{name} {len(kept[name])}" for name in SPLITS)
        raise DataError(f"no rows for {' and '.join(missing)} ({counts})", hint="give more rows, or other data.split")
    facts = _facts([r.entry for r in rows], kept)
    facts = {"stage": "prepare", "inputs": stated, "seconds": round(time.monotonic() - began, 3), **facts}
    with new_folder(run.stage("prepare"), **facts) as folder:
        _write(folder, rows, kept, codec)
    return run.manifest("prepare") or {}


def _limited(rows: list[Examined], recipe: Recipe) -> list[Examined]:
    """Leave only `train_rows` of the training rows in use."""
    seen: Counter[str | None] = Counter()
    names: dict[int, str] = {}
    for place, row in enumerate(rows):
        if row.entry.split == "train":  # equal rows have one id, and rows are what is counted
            repeats, seen[row.entry.id] = seen[row.entry.id], seen[row.entry.id] + 1
            names[place] = f"{row.entry.id} {repeats}" if repeats else str(row.entry.id)
    chosen = choose(names.values(), recipe.data.train_rows, recipe.seed)
    unused = {place for place, name in names.items() if name not in chosen}
    return [_unused(row.entry) if place in unused else row for place, row in enumerate(rows)]


def _unused(entry: Entry) -> Examined:
    return Examined(Entry(entry.row, entry.where, "unused", "train", entry.id, "beyond train_rows"), None, None)


def _facts(entries: list[Entry], kept: dict[str, list[Examined]]) -> dict[str, Any]:
    status = Counter(entry.status for entry in entries)
    reasons = {s: dict(Counter(e.reason for e in entries if e.status == s)) for s in ("dropped", "cut")}
    return {
        "counts": {
            **{name: len(rows) for name, rows in kept.items()},
            **{name: status.get(name, 0) for name in ("dropped", "cut", "unused")},
        },
        **reasons,
        "tokens": {name: sum(r.entry.tokens for r in rows) for name, rows in kept.items()},
        "trained_tokens": {name: sum(r.entry.trained for r in rows) for name, rows in kept.items()},
        "lengths": {name: histogram([r.entry.tokens for r in rows]) for name, rows in kept.items()},
    }


def _write(folder: Path, rows: list[Examined], kept: dict[str, list[Examined]], codec: Codec) -> None:
    write_jsonl(folder / "rows.jsonl", (asdict(r.entry) for r in rows))
    samples = []
    for name, chosen in kept.items():
        write_jsonl(folder / "examples" / f"{name}.jsonl", (r.example.to_json() for r in chosen if r.example))
        tokens: list[Tokens] = [r.tokens for r in chosen if r.tokens]
        write_tokens(folder / "tokens" / f"{name}.safetensors", tokens)
        samples += [
            {"split": name, "row": r.entry.row, "id": r.entry.id, "tokens": token_view(r.tokens, codec)}
            for r in chosen[:_SAMPLES]
            if r.tokens
        ]
    write_json(folder / "samples.json", samples)
