"""The loss weight of a source reaches the prepared rows and the result of training; without one nothing changes."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe

from tunesmith import run_recipe
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.records import LOSS_WEIGHT
from tunesmith.core.rundir import RunDir
from tunesmith.data.token_dataset import TokenDataset

TASKS: dict[str, dict[str, Any]] = {
    "chat": {"task": "chat", "prompt": "{question}", "response": "{answer}"},
    "text": {"task": "text", "text": "{question} {answer}", "max_tokens_per_example": 12, "too_long": "truncate"},
}


def trained(folder: Path, model: Path, task: str, weight: float) -> RunDir:
    folder.mkdir()
    file = recipe(
        folder, model,
        data={**TASKS[task], "source": [{"file": "rows.jsonl"}, {"file": "more.jsonl", "loss_weight": weight}],
              "split": {"valid": 0.15, "test": 0.2}},
        train={"learning_rate": 0.01, "max_steps": 2, "examples_per_step": 8},
    )  # fmt: skip
    rows = [json.dumps({"question": f"Tell me {i}.", "answer": "no", "tree": i}) for i in range(40)]
    (folder / "more.jsonl").write_text("\n".join(rows))
    return run_recipe(file, out=folder / "run", until="train")


@pytest.mark.parametrize("task", TASKS)
def test_rows_have_the_weight_of_their_source_and_training_follows_it(tmp_path: Path, tiny: Path, task: str) -> None:
    plain, weighted = (trained(tmp_path / f"{weight}", tiny, task, weight) for weight in (1.0, 0.25))
    assert LOSS_WEIGHT not in TokenDataset(plain.tokens("train")).columns
    rows = TokenDataset(weighted.tokens("train"))
    by_id = {line["id"]: line["source"] for line in read_jsonl(weighted.ledger)}
    ids = [line["id"] for line in read_jsonl(weighted.examples("train"))]
    weights = {by_id[name]: rows.example(place, name).columns[LOSS_WEIGHT] for place, name in enumerate(ids)}
    assert weights == {"rows.jsonl": (1.0,), "more.jsonl": (0.25,)}
    valid = [[line for line in read_jsonl(run.metrics) if line["kind"] == "valid"] for run in (plain, weighted)]
    assert valid[0][0] == valid[1][0]  # validation of the base is not weighted
    assert valid[0][-1]["loss"] != valid[1][-1]["loss"]
