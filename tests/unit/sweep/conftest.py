"""Sweeps with finished trials: folders with manifests and scores, written without a model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe
from tests.support.verdicts import comparison, verdict

from tunesmith.core.files import read_json, seal_folder, write_json
from tunesmith.core.jsonl import write_jsonl
from tunesmith.sweep.axes import Sweep, Trial, list_trials, write_sweep

ROWS = 80
MakeSweep = Callable[..., Sweep]
HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\u202e{{7*7}}"


def binary(right: int, rows: int = ROWS) -> list[float]:
    """Return scores of 0 or 1, of which `right` are 1, spread over the rows."""
    return [1.0 if (row * right) // rows != ((row + 1) * right) // rows else 0.0 for row in range(rows)]


def finish(
    sweep: Sweep,
    trial: Trial,
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    guard_passes: bool | None = None,
    **facts: Any,
) -> None:
    """Write the files of a finished trial: manifests, scores and verdict."""
    run = sweep.run(trial)
    ids = [f"row-{row}" for row in range(len(tuned))]
    for folder in ("prepare/examples", "train", "evaluate/base", "evaluate/tuned"):
        (run.path / folder).mkdir(parents=True, exist_ok=True)
    write_jsonl(run.examples("test"), ({"id": row_id, "group": row_id} for row_id in ids))
    seal_folder(run.stage("prepare"), stage="prepare", inputs={}, counts={"train": facts.get("train_rows", 100)})
    trained = {
        "trainable_parameters": 1000 * trial.number,
        "all_parameters": 50_000 + 1000 * trial.number,
        "tokens": 9000,
    }
    trained |= {"seconds": 20.0 + trial.number, "peak_memory_gib": 0.5 + 0.1 * trial.number, "tokens_per_second": 300.0}
    seal_folder(run.stage("train"), stage="train", inputs={}, **{**trained, **facts})
    for name, scores in (("base", base), ("tuned", tuned)):
        rows = zip(ids, scores, strict=True)
        lines = ({"id": row_id, "group": row_id, "exact_match": score} for row_id, score in rows)
        write_jsonl(run.evaluation(name) / "scores.jsonl", lines)
    others = comparison("rougeL"), comparison("perplexity", low=-1.0, higher_is_better=False)
    guards = [] if guard_passes is None else [("rougeL" if guard_passes else "perplexity", 0.1)]
    write_json(run.verdict, verdict(comparison("exact_match"), *others, guards=guards).to_json())
    seal_folder(run.stage("evaluate"), stage="evaluate", inputs={})


@pytest.fixture
def make_sweep(tmp_path: Path, tokenizer_folder: Path) -> MakeSweep:
    """Return a function that writes a sweep judged by exact match, without running its trials."""

    def make(*over: str, name: str = "sweep", overrides: Sequence[str] = (), **changes: Any) -> Sweep:
        settings = {"metrics": ["exact_match"], "primary": "exact_match"}
        file = recipe(tmp_path, tokenizer_folder, **{"evaluate": settings, **changes})
        sweep = list_trials(file, over=over or ["tuning.rank=2,8,32"], overrides=overrides, out=tmp_path / name)
        write_sweep(sweep, file)
        return sweep

    return make


def result_json(sweep: Sweep) -> dict[str, Any]:
    """Return the content of `sweep.json`, which must be strict JSON."""
    content = read_json(sweep.path / "sweep.json")
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    return dict(content)
