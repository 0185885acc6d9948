"""Padded and packed batches contain the tokens that were written, with the right masks and positions."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.tokens import dataset_of, write_examples

from tunesmith.core.records import ENCODER_IDS, SEQUENCE_LENGTHS, Column, TokenizedExample
from tunesmith.data.microbatch import MicroBatch, MicroBatchPolicy
from tunesmith.data.token_dataset import ENCODER_MASK, TokenDataset, bucket, round_up

SIGN, WEIGHT = Column("sign", "float32", "sequence"), Column("weight", "float64")
PAD = 7
# The padding id also occurs in the rows: the loss mask follows from positions, never from ids.
rendered = st.lists(st.tuples(st.sampled_from([0, 1, PAD, 300]), st.booleans()), min_size=1, max_size=40)


def write_and_load(path: Path, rows: list[list[tuple[int, bool]]]) -> TokenDataset:
    examples = [
        TokenizedExample(str(i), tuple(t for t, _ in row), tuple(x for _, x in row)) for i, row in enumerate(rows)
    ]
    write_examples(path / "x.safetensors", examples)
    return TokenDataset(path / "x.safetensors")


def test_buckets_are_long_enough_monotonic_and_few() -> None:
    buckets = [bucket(length) for length in range(1, 4097)]
    assert all(padded >= length for length, padded in enumerate(buckets, 1))
    assert buckets == sorted(buckets)
    assert all(bucket(length) == length for length in buckets)
    assert all(padded < 1.25 * length + 16 for length, padded in enumerate(buckets, 1))  # padding is bounded too
    assert len(set(buckets)) < 40


# --- padded ---


@given(rows=st.lists(rendered, min_size=1, max_size=8), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_padded_batch_contains_the_tokens_as_written(
    tmp_path: Path, rows: list[list[tuple[int, bool]]], data: st.DataObject
) -> None:
    tokens = write_and_load(tmp_path, rows)
    assert len(tokens) == len(rows)
    assert tokens.lengths.tolist() == [len(row) for row in rows]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    batch = tokens.batch(chosen, PAD)
    length = batch.input_ids.shape[1]
    assert batch.input_ids.shape == batch.loss_mask.shape == (len(chosen), length)
    longest = max(len(rows[row]) for row in chosen)
    assert longest <= length <= min(bucket(longest), max(map(len, rows)))
    for line, row in enumerate(chosen):
        padding = length - len(rows[row])
        assert batch.input_ids[line].tolist() == [token for token, _ in rows[row]] + [PAD] * padding
        # The first token is never predicted, and padding is not trained.
        loss_mask = [False, *(trained for _, trained in rows[row][1:])]
        assert batch.loss_mask[line].tolist() == loss_mask + [False] * padding
        assert batch.segment_ids[line].tolist() == [line] * len(rows[row]) + [-2] * padding
    assert batch.tokens == sum(len(rows[row]) for row in chosen)
    assert tokens.trained_tokens(chosen) == int(batch.loss_mask.sum())
    assert batch.input_ids.dtype == torch.int64


def test_repeated_row_counts_twice(tmp_path: Path) -> None:
    tokens = write_and_load(tmp_path, [[(1, True)] * 4, [(1, True)] * 3])
    assert tokens.trained_tokens([0, 0, 1]) == 3 + 3 + 2
    assert tokens.batch([0, 0], PAD).tokens == 8


def test_split_may_be_empty(tmp_path: Path) -> None:
    tokens = write_and_load(tmp_path, [])
    assert len(tokens) == 0
    assert tokens.trained_tokens([]) == 0


def test_padding_does_not_exceed_the_longest_row(tmp_path: Path) -> None:
    """A model with 130 learned positions cannot read the bucket of 160 for such a row."""
    tokens = write_and_load(tmp_path, [[(1, True)] * 130, [(1, True)] * 5])
    assert tokens.batch([0, 1], PAD).input_ids.shape == (2, 130)
    assert tokens.batch([1], PAD).input_ids.shape == (1, 16)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_batch_moves_to_a_device(tmp_path: Path, device: str) -> None:
    moved = write_and_load(tmp_path, [[(1, True)] * 4]).batch([0], PAD).to(torch.device(device))
    assert moved.input_ids.device.type == moved.loss_mask.device.type == device
    assert moved.tokens == 4


# --- packed ---


@given(rows=st.lists(rendered, min_size=2, max_size=6), share=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_rows_attend_to_themselves_only(tmp_path: Path, rows: list[list[tuple[int, bool]]], share: bool) -> None:
    tokens, chosen = write_and_load(tmp_path, rows), list(range(len(rows)))
    shared = min(tokens.shared_prefix_length(row, row + 1) for row in chosen[:-1]) if share else 0
    batch = tokens.packed(chosen, PAD, shared=shared)
    mask = batch.attention_mask()
    assert batch.positions is not None
    assert batch.segment_lengths == (
        shared,
        *(len(row) - shared for row in rows),
        batch.input_ids.shape[1] - sum(batch.segment_lengths[:-1]),
    )
    trained: dict[int, list[int]] = {row: [] for row in chosen}
    for column in torch.nonzero(batch.segment_ids[0] >= 0).flatten().tolist():
        row, position = int(batch.segment_ids[0, column]), int(batch.positions[0, column])
        keys = torch.nonzero(mask[0, 0, column]).flatten()
        # A token attends to its row up to itself.
        assert batch.input_ids[0, keys].tolist() == [token for token, _ in rows[row][: position + 1]]
        assert batch.positions[0, keys].tolist() == list(range(position + 1))
        if batch.loss_mask[0, column]:
            assert keys[-2] == column - 1, "the previous column predicts it"
            trained[row].append(position)
    assert trained == {
        i: [p for p, (_, is_trained) in enumerate(row) if is_trained and p] for i, row in enumerate(rows)
    }
    assert mask[0, 0].diagonal().all(), "a query without keys gives NaN"
    assert batch.tokens == sum(map(len, rows))
    assert batch.input_ids.shape == (1, round_up(tokens.packed_tokens(chosen, shared), 16))


def test_shared_prefix_ends_before_the_token_that_predicts_an_answer(tmp_path: Path) -> None:
    def row(*ids: int, trained: int) -> list[tuple[int, bool]]:
        return [(token, position >= trained) for position, token in enumerate(ids)]

    tokens = write_and_load(
        tmp_path, [row(1, 2, 3, 4, 5, trained=3), row(1, 2, 3, 4, 6, trained=4), row(1, 9, 3, trained=2)]
    )
    assert tokens.shared_prefix_length(0, 1) == 2  # 3 predicts the first trained token
    assert tokens.shared_prefix_length(1, 2) == 1
    assert tokens.shared_prefix_length(0, 0) == 2
    assert tokens.packed_tokens([0, 1], 2) == 2 + 3 + 3


# --- with an encoder ---


@given(rows=st.lists(st.tuples(rendered, st.lists(st.sampled_from([0, PAD, 9]), min_size=1, max_size=40)), min_size=1))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_batch_contains_the_encoder_ids_as_written(
    tmp_path: Path, rows: list[tuple[list[tuple[int, bool]], list[int]]]
) -> None:
    examples = [
        TokenizedExample(str(i), tuple(t for t, _ in target), tuple(x for _, x in target), {ENCODER_IDS: tuple(source)})
        for i, (target, source) in enumerate(rows)
    ]
    write_examples(tmp_path / "x.safetensors", examples)
    tokens = TokenDataset(tmp_path / "x.safetensors")
    assert [tokens.example(i, str(i)) for i in range(len(tokens))] == examples
    assert tokens.lengths.tolist() == [len(e.prompt_ids) + len(e.input_ids) for e in examples]
    assert tokens.max_length == max(max(len(e.prompt_ids), len(e.input_ids)) for e in examples)
    chosen = [*range(len(rows)), 0]
    batch = tokens.batch(chosen, PAD)
    ids, mask = batch.columns[ENCODER_IDS], batch.columns[ENCODER_MASK]
    assert batch.tokens == sum(tokens.lengths[chosen])
    for i, row in enumerate(chosen):
        source = examples[row].prompt_ids
        assert tuple(ids[i, : len(source)].tolist()) == source
        assert mask[i].tolist() == [1] * len(source) + [0] * (ids.shape[1] - len(source))
        assert set(ids[i, len(source) :].tolist()) <= {PAD}
        assert tuple(batch.input_ids[i, : len(examples[row].input_ids)].tolist()) == examples[row].input_ids
    assert ids.shape[1] <= max(len(e.prompt_ids) for e in examples)
    moved = batch.to(torch.device("meta"))
    assert (moved.columns[ENCODER_IDS].device.type, moved.input_ids.device.type, moved.tokens) == (
        "meta",
        "meta",
        batch.tokens,
    )


def pairs() -> list[TokenizedExample]:
    """Return examples of two answers to one prompt, with a weight per token and a sign per answer."""
    examples = []
    for i, (prompt, *ends) in enumerate([(3, 2, 4), (5, 1, 1), (2, 6, 3)]):
        ids = [[*range(10 * i, 10 * i + prompt), *[100 + i + k] * end] for k, end in enumerate(ends)]
        trained = [position >= prompt for sequence in ids for position in range(len(sequence))]
        flat = tuple(token for sequence in ids for token in sequence)
        columns = {
            SEQUENCE_LENGTHS: tuple(map(len, ids)),
            SIGN: (1.0, -1.0),
            WEIGHT: tuple(position / 8 for position in range(len(flat))),
        }
        examples.append(TokenizedExample(str(i), flat, tuple(trained), columns))
    return examples


def test_batches_of_examples_with_several_sequences(tmp_path: Path) -> None:
    examples = pairs()
    write_examples(tmp_path / "x.safetensors", examples)
    tokens = TokenDataset(tmp_path / "x.safetensors")
    assert tokens.columns >= {SEQUENCE_LENGTHS, SIGN, WEIGHT}
    assert [tokens.example(i, str(i)) for i in range(3)] == examples
    assert tokens.lengths.tolist() == [12, 12, 13]
    assert (tokens.max_length, tokens.sequence_lengths([0, 2])) == (8, [5, 7, 8, 5])
    assert tokens.trained_tokens([0, 1]) == 2 + 4 + 1 + 1
    # The last token of a prompt is not shared, because it predicts a trained token.
    assert [tokens.shared_prefix_length(i, i) for i in range(3)] == [2, 4, 1]
    padded, packed = tokens.batch([2, 0], PAD), tokens.packed([2], PAD, shared=1)
    for batch, rows in ((padded, [2, 0]), (packed, [2])):
        assert batch.examples is not None
        assert batch.examples.tolist() == [index for index in range(len(rows)) for _ in range(2)]
        assert batch.columns[SIGN].tolist() == [1.0, -1.0] * len(rows)
        assert batch.columns.keys() == {SIGN, WEIGHT}
        for index, row in enumerate(rows):
            first = examples[row].columns[SEQUENCE_LENGTHS][0]
            for k in range(2):
                chosen = batch.loss_mask & (batch.segment_ids == 2 * index + k)
                expected = [i for i, trained in enumerate(examples[row].trained) if trained and (i >= first) == bool(k)]
                assert batch.input_ids[chosen].tolist() == [examples[row].input_ids[i] for i in expected]
                assert batch.columns[WEIGHT][chosen].tolist() == [i / 8 for i in expected]
    assert padded.input_ids.shape[0] == 4
    assert packed.segment_lengths[:3] == (1, 7, 4)


def test_pair_is_never_divided() -> None:
    tokens = dataset_of(pairs())
    for size in (1, 2, 3):
        micro_batches = MicroBatchPolicy(1, size, "never").split(tokens, range(3))
        assert [len(micro_batch.rows) for micro_batch in micro_batches] == [[1, 1, 1], [2, 1], [3]][size - 1]
    [micro_batch] = MicroBatchPolicy(4096, 1, "always", pad_multiple=1).split(tokens, [1])
    assert micro_batch == MicroBatch((1,), 4)  # the two answers share their prompt


def test_batch_without_an_encoder_has_no_encoder_ids(tmp_path: Path) -> None:
    tokens = write_and_load(tmp_path, [[(5, False), (6, True)]])
    batch = tokens.batch([0], PAD)
    assert (batch.columns, tokens.max_length) == ({}, 2)
    assert tokens.example(0, "x") == TokenizedExample("x", (5, 6), (False, True))


@given(rows=st.lists(rendered, min_size=0, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shortest_first_puts_untrained_rows_last(tmp_path: Path, rows: list[list[tuple[int, bool]]]) -> None:
    tokens = write_and_load(tmp_path, rows)
    expected = sorted(range(len(rows)), key=lambda row: (tokens.trained_tokens([row]) == 0, len(rows[row])))
    assert tokens.shortest_first() == expected
