"""Tokenized examples in memory, as the columns that the token file and TokenDataset are made of."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from tunesmith.core.records import INPUT_IDS, TRAINED, Column, TokenizedExample
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.data.token_file import RaggedBytes, RaggedColumns, columns_of, to_bytes, write_tokens


def ragged_columns(examples: Sequence[TokenizedExample]) -> RaggedColumns:
    """Return the columns of examples as bytes."""
    rows = [columns_of(example) for example in examples]
    names = dict.fromkeys([INPUT_IDS, TRAINED, *chain.from_iterable(rows)])
    return {column: _ragged_bytes(column, [row.get(column, ()) for row in rows]) for column in names}


def _ragged_bytes(column: Column, rows: Sequence[Sequence[float]]) -> RaggedBytes:
    return RaggedBytes([len(values) for values in rows], lambda: (to_bytes(column, values) for values in rows))


def write_examples(path: Path, examples: Sequence[TokenizedExample]) -> None:
    """Write the token file of examples."""
    write_tokens(path, ragged_columns(examples))


def dataset_of(examples: Sequence[TokenizedExample]) -> TokenDataset:
    """Return the dataset of examples."""
    return TokenDataset(ragged_columns(examples))
