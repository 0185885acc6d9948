"""The spool returns rows unchanged, and takes no memory for their tokens."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tests.support.tiny import recipe as write_recipe
from tests.support.tokens import dataset_of, ragged_columns

from tunesmith.core.files import write_json
from tunesmith.core.records import ENCODER_IDS, Column, Example, TokenizedExample, Turn
from tunesmith.core.rundir import RunDir
from tunesmith.data.prepare import prepare
from tunesmith.data.process_rows import LedgerEntry, ProcessedRow
from tunesmith.data.spool import Spool, SpooledRow, encode_row
from tunesmith.data.token_file import write_tokens
from tunesmith.recipe.load import load_recipe

SIGN, WEIGHT = Column("sign", "float32", "sequence"), Column("weight", "float64")
IDS = st.integers(0, 2**31 - 1)
ROWS = st.lists(st.tuples(st.lists(st.tuples(IDS, st.booleans())), st.lists(IDS, max_size=4)), max_size=6)


def columns(length: int, source: list[int]) -> dict[Column, tuple[float, ...]]:
    """Return ids for an encoder, and values per token and per sequence that follow from the length."""
    all_columns = {ENCODER_IDS: tuple(source), WEIGHT: tuple(i / 4 for i in range(length)), SIGN: (length / 2,)}
    return {column: values for column, values in all_columns.items() if values}


def tokens_of(rows: list[Any]) -> list[TokenizedExample]:
    return [
        TokenizedExample(
            str(i), tuple(id_ for id_, _ in ids), tuple(trained for _, trained in ids), columns(len(ids), source)
        )
        for i, (ids, source) in enumerate(rows)
    ]


def add(spool: Spool, *blocks: ProcessedRow) -> list[SpooledRow]:
    return [spool.add(encoded) for encoded in encode_row(blocks)]


def spooled(examples: list[TokenizedExample]) -> tuple[Spool, list[int]]:
    spool = Spool()
    indices = []
    for row, tokens in enumerate(examples, 1):
        turns = (Turn("text", f"row \u2028 é {row}", trained=True),)
        entry = LedgerEntry(row, f"x:{row}", "x", "kept", "train", tokens.example_id)
        [added] = add(spool, ProcessedRow(entry, Example(tokens.example_id, row, "g", turns), tokens, turns))
        assert added.index is not None
        indices.append(added.index)
    return spool, indices


@given(rows=ROWS, order=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_rows_come_back_in_any_order(rows: list[Any], order: Any) -> None:
    examples = tokens_of(rows)
    spool, indices = spooled(examples)
    chosen = order.choices(range(len(indices)), k=7) if indices else []
    assert [spool.tokens(indices[i], str(i)) for i in chosen] == [examples[i] for i in chosen]
    lines = [json.loads(line) for line in spool.examples([indices[i] for i in chosen])]
    assert [Example.from_json(line).row for line in lines] == [i + 1 for i in chosen]


@given(rows=ROWS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_token_file_equals_that_of_safetensors(tmp_path: Path, rows: list[Any]) -> None:
    examples = tokens_of(rows)
    arrays: dict[str, Any] = {
        "input_ids": np.array([i for e in examples for i in e.input_ids], np.int32),
        "trained": np.array([t for e in examples for t in e.trained], np.uint8),
        "offsets": np.cumsum([0, *(len(e.input_ids) for e in examples)], dtype=np.int64),
    }
    sources = [e.columns.get(ENCODER_IDS, ()) for e in examples]
    if any(sources):
        arrays["source_offsets"] = np.cumsum([0, *map(len, sources)], dtype=np.int64)
        arrays["source_ids"] = np.array([i for source in sources for i in source], np.int32)
    if any(e.input_ids for e in examples):
        arrays["weight"] = np.array([i / 4 for e in examples for i in range(len(e.input_ids))], np.float64)
    if examples:
        arrays["sign"] = np.array([[len(e.input_ids) / 2] for e in examples], np.float32)
        arrays["sequence_offsets"] = np.arange(len(examples) + 1)
    save_file(arrays, tmp_path / "expected")
    spool, indices = spooled(examples)
    for name, given_rows in (("from memory", ragged_columns(examples)), ("from spool", spool.rows(indices))):
        write_tokens(tmp_path / name, given_rows)
        assert (tmp_path / name).read_bytes() == (tmp_path / "expected").read_bytes()
    dataset = dataset_of(examples)
    assert [dataset.example(i, str(i)) for i in range(len(dataset))] == examples


def test_blocks_of_a_document_share_its_hash_and_shingles() -> None:
    spool = Spool()
    turns = (Turn("text", "one two three four", trained=True),)
    first, block, second = (
        ProcessedRow(
            LedgerEntry(row, "", "", "kept"), Example("a", row, "", turns), TokenizedExample("a", (1,), (True,)), turns
        )
        for row in (1, 1, 2)
    )
    added = [*add(spool, first, block), *add(spool, second)]
    assert added[0].content_hash == added[1].content_hash == added[2].content_hash
    assert [row.shingles for row in added] == [0, 0, 1]
    assert add(spool, ProcessedRow(LedgerEntry(3, "", "", "dropped"), None, None))[0].index is None


def peak(folder: Path, model: Path, rows: int) -> int:
    """Return the peak memory of Python and numpy, in bytes, while preparing rows of about 400 tokens."""
    folder.mkdir()
    path = write_recipe(folder, model)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(rows):
            file.write(json.dumps({"question": f"Number {i}", "answer": f"x{i}y" * 60}) + "\n")
    run = RunDir(folder / "run")
    write_json(run.environment, {"recipe_folder": ".."})
    tracemalloc.start()
    try:
        prepare(load_recipe(path, ["data.max_tokens_per_example=2000"]), run)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tokens(tmp_path: Path, tokenizer_folder: Path) -> None:
    few, many = (peak(tmp_path / str(rows), tokenizer_folder, rows) for rows in (200, 800))
    per_row = (many - few) / 600
    assert per_row < 3000, "a Python object for each of 400 tokens would take 14,000 bytes a row"
