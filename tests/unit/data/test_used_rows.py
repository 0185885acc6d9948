"""What `prepare` wrote is read back as it was gathered."""

from pathlib import Path

import numpy as np
from tests.support.tiny import recipe, write_rows

from tunesmith.core.rundir import SPLITS
from tunesmith.data.dataset import build_dataset
from tunesmith.data.used_rows import PreparedRows
from tunesmith.pipeline.runner import run_recipe
from tunesmith.recipe.load import load_recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter

CHANGES = [
    "data.source=[{file: rows.jsonl, weight: 2.5}, {file: more.jsonl, name: more}]", "data.train_rows=0.8",
    "data.filters=[{column: tree, max: 15}]",
]  # fmt: skip


def test_prepared_rows_are_those_that_were_gathered(tmp_path: Path, tokenizer_folder: Path) -> None:
    file = recipe(tmp_path, tokenizer_folder)
    write_rows(tmp_path / "more.jsonl", 30)
    loaded = load_recipe(file, CHANGES)
    gathered = build_dataset(loaded, task_for(loaded.data, TokenizerAdapter.load(tokenizer_folder)), folder=tmp_path)
    prepared = PreparedRows(run_recipe(file, CHANGES, out=tmp_path / "run", until="prepare"))
    assert max(line.times for line in prepared.ledger_entries("train")) > 1
    for split in SPLITS:
        lines = prepared.ledger_entries(split)
        assert lines == gathered.ledger_entries(split)
        assert len(lines) == gathered.facts()["counts"][split]
        examples = [prepared.example(split, place) for place in range(len(lines))]
        assert examples == [gathered.example(split, place) for place in range(len(lines))]
        assert [example.id for example in examples] == [line.id for line in lines]
        ours, theirs = prepared.tokens(split), gathered.tokens(split)
        assert np.array_equal(ours.lengths, theirs.lengths)
        assert [ours.example(n, "x") for n in range(len(ours))] == [theirs.example(n, "x") for n in range(len(ours))]
    facts = gathered.facts()
    assert {key: prepared.facts()[key] for key in facts} == facts
