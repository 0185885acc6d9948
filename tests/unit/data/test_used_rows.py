"""PreparedRows reads the rows that `prepare` wrote, equal to those in memory."""

from pathlib import Path

import numpy as np
from tests.support.tiny import recipe, write_rows

from tunesmith.core.rundir import SPLITS
from tunesmith.data.dataset import PreparedRows, build_dataset
from tunesmith.pipeline.runner import run_recipe
from tunesmith.recipe.load import load_recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter

CHANGES = [
    "data.source=[{file: rows.jsonl, weight: 2.5}, {file: more.jsonl, name: more}]", "data.train_rows=0.8",
    "data.filters=[{column: tree, max: 15}]",
]  # fmt: skip


def test_prepared_rows_equal_the_dataset_in_memory(tmp_path: Path, tokenizer_folder: Path) -> None:
    file = recipe(tmp_path, tokenizer_folder)
    write_rows(tmp_path / "more.jsonl", 30)
    loaded = load_recipe(file, CHANGES)
    dataset = build_dataset(loaded, task_for(loaded.data, TokenizerAdapter.load(tokenizer_folder)), folder=tmp_path)
    prepared = PreparedRows(run_recipe(file, CHANGES, out=tmp_path / "run", until="prepare"))
    assert max(entry.times for entry in prepared.ledger_entries("train")) > 1
    for split in SPLITS:
        entries = prepared.ledger_entries(split)
        assert entries == dataset.ledger_entries(split)
        assert len(entries) == dataset.facts()["counts"][split]
        examples = [prepared.example(split, index) for index in range(len(entries))]
        assert examples == [dataset.example(split, index) for index in range(len(entries))]
        assert [example.id for example in examples] == [entry.id for entry in entries]
        from_disk, in_memory = prepared.tokens(split), dataset.tokens(split)
        assert np.array_equal(from_disk.lengths, in_memory.lengths)
        assert [from_disk.example(n, "x") for n in range(len(from_disk))] == [
            in_memory.example(n, "x") for n in range(len(from_disk))
        ]
    facts = dataset.facts()
    assert {key: prepared.facts()[key] for key in facts} == facts
