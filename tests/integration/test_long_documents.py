"""Documents longer than a block run to a verdict: every token is trained and evaluated once."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.support.tiny import recipe

from tunesmith import plan_run, run_recipe
from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.plan.inspect import inspect_rows
from tunesmith.tasks.tokenizer import TokenizerAdapter

MOST = 32
WORDS = ["one", "two", "red", "blue", "cat", "dog"]
DATA = {
    "source": {"file": "documents.jsonl"}, "task": "text", "text": "story", "max_tokens_per_example": MOST,
    "too_long": "split", "leakage": "drop", "sample_prefix_tokens": 4, "max_dropped_fraction": 0,
    "split": {"column": "fold"},
}  # fmt: skip
EVALUATE = {"metrics": ["perplexity", "token_accuracy"], "primary": "perplexity", "rows": 500, "max_new_tokens": 6}


def write_documents(path: Path) -> list[dict[str, Any]]:
    """Write 40 documents of very different lengths; number 2 (train) is number 30 (test) with one word changed."""
    rows = []
    for i in range(40):
        turns = [f"{n}. Say {WORDS[(i + n) % 6]} and {WORDS[(i * n) % 6]} {i}." for n in range(1, 2 + i % 7)]
        rows.append({"story": " ".join(turns), "fold": "train" if i < 30 else "valid" if i < 33 else "test"})
    rows[39]["story"] = " ".join(f"{n}. Say {WORDS[n % 6]} and red {n * n}." for n in range(12))
    rows[2]["story"] = f"{rows[39]['story']} So it is."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def learned_by_row(run: RunDir, split: str) -> dict[int, list[int]]:
    """Return {row: its trained tokens, over all its blocks}."""
    tokens, found = TokenDataset(run.tokens(split)), defaultdict(list)
    for place, line in enumerate(read_jsonl(run.examples(split))):
        one = tokens.example(place, line["id"])
        assert len(one.input_ids) <= MOST
        found[line["row"]] += [i for i, learned in zip(one.input_ids, one.trained, strict=True) if learned]
    return found


def test_long_documents_run_to_a_verdict(tmp_path: Path, tiny: Path) -> None:
    documents = write_documents(tmp_path / "documents.jsonl")
    train = {"learning_rate": 0.01, "epochs": 2, "examples_per_step": 8}
    file = recipe(tmp_path, tiny, data=DATA, train=train, evaluate=EVALUATE)
    plan = plan_run(file)
    run = run_recipe(file, out=tmp_path / "run")

    tokenizer = TokenizerAdapter.load(tiny)
    for split in ("train", "valid", "test"):
        whole = {
            row: [*tokenizer.encode_untrusted(document["story"])[1:], tokenizer.eos_id]
            for row, document in enumerate(documents, 1)
            if document["fold"] == split and row != 3  # a near-duplicate of a test row
        }
        assert learned_by_row(run, split) == whole

    manifest = run.manifest("prepare")
    assert manifest is not None
    assert manifest["blocks"] == plan.rows.blocks
    assert plan.rows.blocks["blocks"] > 2 * plan.rows.blocks["documents"] > 20
    assert plan.rows.counts["train"] == sum(
        line["status"] == "kept" and line["split"] == "train" for line in read_jsonl(run.ledger)
    )
    left = [line for line in read_jsonl(run.ledger) if line["status"] == "unused"]
    assert {(line["row"], line["reason"]) for line in left} == {(3, "near-duplicate of a test row")}
    assert len(left) == left[0]["block"][1] > 1

    # Training read every block twice, and the verdict counts every token of the test once.
    facts = run.manifest("train")
    assert facts is not None
    steps = [line for line in read_jsonl(run.metrics) if line["kind"] == "step"]
    assert sum(line["trained_tokens"] for line in steps) == 2 * manifest["trained_tokens"]["train"]
    scores = list(read_jsonl(run.evaluation("tuned") / "scores.jsonl"))
    assert sum(line["tokens"] for line in scores) == manifest["trained_tokens"]["test"]
    verdict = read_json(run.verdict)
    assert verdict["verdict"] == "better"
    assert verdict["primary"]["rows"] == len(scores) == manifest["counts"]["test"]
    assert f"{plan.rows.blocks['documents']} documents into" in run.report.read_text(encoding="utf-8")

    # Samples continue the first tokens of a block, and are shown next to it.
    shown = inspect_rows(run.path, rows=4, stage="evaluate")
    assert [one["part"] for one in shown[:3]] == ["prompt", "base", "tuned"]
    assert {len(one["tokens"]) for one in shown if one["part"] == "prompt"} <= {1, 2, 3, 4}
    assert any(one["block"] and one["block"][0] > 1 for one in shown)
