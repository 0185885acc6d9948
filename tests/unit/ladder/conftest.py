"""Ladders whose rungs look as if they had been run: folders with manifests and scores, no model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe

from tunesmith.core.files import read_json, seal_folder, write_json, write_jsonl
from tunesmith.ladder.rungs import Ladder, Rung, list_rungs, write_ladder

ROWS = 80
MakeLadder = Callable[..., Ladder]
HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\u202e{{7*7}}"


def binary(right: int, rows: int = ROWS) -> list[float]:
    """Return scores of which so many are 1, spread over the rows."""
    return [1.0 if (row * right) // rows != ((row + 1) * right) // rows else 0.0 for row in range(rows)]


def finish(
    ladder: Ladder,
    rung: Rung,
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    guards: Sequence[Any] = (),
    **facts: Any,
) -> None:
    """Leave in a rung's folder what its stages would have left."""
    run = ladder.run(rung)
    ids = [f"row-{row}" for row in range(len(tuned))]
    for one in ("prepare/examples", "train", "evaluate/base", "evaluate/tuned"):
        (run.path / one).mkdir(parents=True, exist_ok=True)
    write_jsonl(run.examples("test"), ({"id": one, "group": one} for one in ids))
    seal_folder(run.stage("prepare"), stage="prepare", inputs={}, counts={"train": facts.get("train_rows", 100)})
    trained = {
        "trainable_parameters": 1000 * rung.number,
        "all_parameters": 50_000 + 1000 * rung.number,
        "tokens": 9000,
    }
    trained |= {"seconds": 20.0 + rung.number, "peak_memory_gib": 0.5 + 0.1 * rung.number, "tokens_per_second": 300.0}
    seal_folder(run.stage("train"), stage="train", inputs={}, **{**trained, **facts})
    for name, scores in (("base", base), ("tuned", tuned)):
        lines = ({"id": one, "group": one, "exact_match": score} for one, score in zip(ids, scores, strict=True))
        write_jsonl(run.subject(name) / "scores.jsonl", lines)
    metrics = {name: {"higher_is_better": name != "perplexity"} for name in ("exact_match", "perplexity", "rougeL")}
    write_json(run.verdict, {"guards": list(guards), "metrics": metrics})
    seal_folder(run.stage("evaluate"), stage="evaluate", inputs={})


@pytest.fixture
def make_ladder(tmp_path: Path, tokenizer_folder: Path) -> MakeLadder:
    """Return a function that writes a ladder over exact match, its rungs not run."""

    def make(*over: str, name: str = "ladder", overrides: Sequence[str] = (), **changes: Any) -> Ladder:
        settings = {"metrics": ["exact_match"], "primary": "exact_match"}
        file = recipe(tmp_path, tokenizer_folder, **{"evaluate": settings, **changes})
        ladder = list_rungs(file, over=over or ["tuning.rank=2,8,32"], overrides=overrides, out=tmp_path / name)
        write_ladder(ladder, file)
        return ladder

    return make


def result_json(ladder: Ladder) -> dict[str, Any]:
    """Return what was written of a ladder's result, as a reader of another language would see it."""
    found = read_json(ladder.path / "ladder.json")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return dict(found)
