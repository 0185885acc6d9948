"""Every row is seen exactly once an epoch, every token once a step, however rows are cut into micro-batches."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.core.records import ENCODER_IDS, SEQUENCE_LENGTHS, Column, TokenizedExample
from tunesmith.data.batch import ENCODER_MASK
from tunesmith.data.microbatch import MicroBatch, MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset, bucket, round_up
from tunesmith.data.token_file import write_tokens

SIGN, WEIGHT = Column("sign", "float32", "sequence"), Column("weight", "float64")
PAD = 7
# Control tokens and padding share ids with text on purpose: what is learned goes by position, never by id.
rendered = st.lists(st.tuples(st.sampled_from([0, 1, PAD, 300]), st.booleans()), min_size=1, max_size=40)


def made(path: Path, rows: list[list[tuple[int, bool]]]) -> TokenDataset:
    examples = [
        TokenizedExample(str(i), tuple(t for t, _ in row), tuple(x for _, x in row)) for i, row in enumerate(rows)
    ]
    write_tokens(path / "x.safetensors", examples)
    return TokenDataset(path / "x.safetensors")


def test_buckets_hold_their_rows_grow_and_are_few() -> None:
    found = [bucket(length) for length in range(1, 4097)]
    assert all(made >= length for length, made in enumerate(found, 1))
    assert found == sorted(found)
    assert all(bucket(made) == made for made in found)
    assert all(made < 1.25 * length + 16 for length, made in enumerate(found, 1))  # padding is bounded too
    assert len(set(found)) < 40


# --- what is learned ---


@given(rows=st.lists(rendered, min_size=1, max_size=8), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokens_come_back_as_they_were_written(
    tmp_path: Path, rows: list[list[tuple[int, bool]]], data: st.DataObject
) -> None:
    tokens = made(tmp_path, rows)
    assert len(tokens) == len(rows)
    assert tokens.lengths.tolist() == [len(row) for row in rows]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    batch = tokens.batch(chosen, PAD)
    length = batch.input_ids.shape[1]
    assert batch.input_ids.shape == batch.loss_mask.shape == (len(chosen), length)
    longest = max(len(rows[row]) for row in chosen)
    assert longest <= length <= min(bucket(longest), max(map(len, rows)))
    for place, row in enumerate(chosen):
        padding = length - len(rows[row])
        assert batch.input_ids[place].tolist() == [token for token, _ in rows[row]] + [PAD] * padding
        # The first token has nothing before it, and padding is nobody's answer.
        learned = [False, *(trained for _, trained in rows[row][1:])]
        assert batch.loss_mask[place].tolist() == learned + [False] * padding
        assert batch.segment_ids[place].tolist() == [place] * len(rows[row]) + [-2] * padding
    assert batch.tokens == sum(len(rows[row]) for row in chosen)
    assert tokens.trained_tokens(chosen) == int(batch.loss_mask.sum())
    assert batch.input_ids.dtype == torch.int64


def test_a_row_twice_in_a_step_counts_twice(tmp_path: Path) -> None:
    tokens = made(tmp_path, [[(1, True)] * 4, [(1, True)] * 3])
    assert tokens.trained_tokens([0, 0, 1]) == 3 + 3 + 2
    assert tokens.batch([0, 0], PAD).tokens == 8


def test_a_split_may_be_empty(tmp_path: Path) -> None:
    tokens = made(tmp_path, [])
    assert len(tokens) == 0
    assert tokens.trained_tokens([]) == 0


def test_padding_does_not_go_beyond_the_longest_row(tmp_path: Path) -> None:
    """A model with 130 learned positions has none for the 160 that the bucket of such a row would have."""
    tokens = made(tmp_path, [[(1, True)] * 130, [(1, True)] * 5])
    assert tokens.batch([0, 1], PAD).input_ids.shape == (2, 130)
    assert tokens.batch([1], PAD).input_ids.shape == (1, 16)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_batch_moves_to_a_device(tmp_path: Path, device: str) -> None:
    moved = made(tmp_path, [[(1, True)] * 4]).batch([0], PAD).to(torch.device(device))
    assert moved.input_ids.device.type == moved.loss_mask.device.type == device
    assert moved.tokens == 4


# --- side by side ---


@given(rows=st.lists(rendered, min_size=2, max_size=6), share=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_side_by_side_see_themselves_in_their_places(
    tmp_path: Path, rows: list[list[tuple[int, bool]]], share: bool
) -> None:
    tokens, chosen = made(tmp_path, rows), list(range(len(rows)))
    shared = min(tokens.shared_prefix_length(row, row + 1) for row in chosen[:-1]) if share else 0
    batch = tokens.packed(chosen, PAD, shared=shared)
    sees = batch.attention_mask()
    assert batch.positions is not None
    assert batch.segment_lengths == (
        shared,
        *(len(row) - shared for row in rows),
        batch.input_ids.shape[1] - sum(batch.segment_lengths[:-1]),
    )
    learned: dict[int, list[int]] = {row: [] for row in chosen}
    for column in torch.nonzero(batch.segment_ids[0] >= 0).flatten().tolist():
        row, place = int(batch.segment_ids[0, column]), int(batch.positions[0, column])
        seen = torch.nonzero(sees[0, 0, column]).flatten()
        # What a token sees is its row up to itself, whatever stands between.
        assert batch.input_ids[0, seen].tolist() == [token for token, _ in rows[row][: place + 1]]
        assert batch.positions[0, seen].tolist() == list(range(place + 1))
        if batch.loss_mask[0, column]:
            assert seen[-2] == column - 1, "it is predicted from the column before"
            learned[row].append(place)
    assert learned == {i: [p for p, (_, trained) in enumerate(row) if trained and p] for i, row in enumerate(rows)}
    assert sees[0, 0].diagonal().all(), "a token that sees nothing gives NaN"
    assert batch.tokens == sum(map(len, rows))
    assert batch.input_ids.shape == (1, round_up(tokens.packed_tokens(chosen, shared), 16))


def test_what_two_rows_share_ends_before_what_predicts_an_answer(tmp_path: Path) -> None:
    def row(*ids: int, trained: int) -> list[tuple[int, bool]]:
        return [(token, place >= trained) for place, token in enumerate(ids)]

    tokens = made(tmp_path, [row(1, 2, 3, 4, 5, trained=3), row(1, 2, 3, 4, 6, trained=4), row(1, 9, 3, trained=2)])
    assert tokens.shared_prefix_length(0, 1) == 2  # 3 predicts the first answer
    assert tokens.shared_prefix_length(1, 2) == 1
    assert tokens.shared_prefix_length(0, 0) == 2
    assert tokens.packed_tokens([0, 1], 2) == 2 + 3 + 3


# --- with an encoder ---


@given(rows=st.lists(st.tuples(rendered, st.lists(st.sampled_from([0, PAD, 9]), min_size=1, max_size=40)), min_size=1))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_sources_come_back_as_they_were_written(
    tmp_path: Path, rows: list[tuple[list[tuple[int, bool]], list[int]]]
) -> None:
    examples = [
        TokenizedExample(str(i), tuple(t for t, _ in own), tuple(x for _, x in own), {ENCODER_IDS: tuple(source)})
        for i, (own, source) in enumerate(rows)
    ]
    write_tokens(tmp_path / "x.safetensors", examples)
    tokens = TokenDataset(tmp_path / "x.safetensors")
    assert [tokens.example(i, str(i)) for i in range(len(tokens))] == examples
    assert tokens.lengths.tolist() == [len(e.prompt_ids) + len(e.input_ids) for e in examples]
    assert tokens.max_length == max(max(len(e.prompt_ids), len(e.input_ids)) for e in examples)
    places = [*range(len(rows)), 0]
    batch = tokens.batch(places, PAD)
    ids, mask = batch.columns[ENCODER_IDS], batch.columns[ENCODER_MASK]
    assert batch.tokens == sum(tokens.lengths[places])
    for i, row in enumerate(places):
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
    """Return examples of two answers to one prompt, with a weight for each token and a sign for each answer."""
    found = []
    for i, (prompt, *ends) in enumerate([(3, 2, 4), (5, 1, 1), (2, 6, 3)]):
        ids = [[*range(10 * i, 10 * i + prompt), *[100 + i + k] * end] for k, end in enumerate(ends)]
        trained = [place >= prompt for one in ids for place in range(len(one))]
        flat = tuple(token for one in ids for token in one)
        columns = {
            SEQUENCE_LENGTHS: tuple(map(len, ids)),
            SIGN: (1.0, -1.0),
            WEIGHT: tuple(place / 8 for place in range(len(flat))),
        }
        found.append(TokenizedExample(str(i), flat, tuple(trained), columns))
    return found


def test_an_example_of_several_sequences_is_kept_together(tmp_path: Path) -> None:
    examples = pairs()
    write_tokens(tmp_path / "x.safetensors", examples)
    tokens = TokenDataset(tmp_path / "x.safetensors")
    assert tokens.columns >= {SEQUENCE_LENGTHS, SIGN, WEIGHT}
    assert [tokens.example(i, str(i)) for i in range(3)] == examples
    assert tokens.lengths.tolist() == [12, 12, 13]
    assert (tokens.max_length, tokens.sequence_lengths([0, 2])) == (8, [5, 7, 8, 5])
    assert tokens.trained_tokens([0, 1]) == 2 + 4 + 1 + 1
    assert [tokens.shared_prefix_length(i, i) for i in range(3)] == [
        2,
        4,
        1,
    ]  # the last of a prompt predicts a trained token
    padded, packed = tokens.batch([2, 0], PAD), tokens.packed([2], PAD, shared=1)
    for batch, places in ((padded, [2, 0]), (packed, [2])):
        assert batch.examples is not None
        assert batch.examples.tolist() == [place for place in range(len(places)) for _ in range(2)]
        assert batch.columns[SIGN].tolist() == [1.0, -1.0] * len(places)
        assert batch.columns.keys() == {SIGN, WEIGHT}
        for place, row in enumerate(places):
            first = examples[row].columns[SEQUENCE_LENGTHS][0]
            for k in range(2):
                chosen = batch.loss_mask & (batch.segment_ids == 2 * place + k)
                wanted = [i for i, learned in enumerate(examples[row].trained) if learned and (i >= first) == bool(k)]
                assert batch.input_ids[chosen].tolist() == [examples[row].input_ids[i] for i in wanted]
                assert batch.columns[WEIGHT][chosen].tolist() == [i / 8 for i in wanted]
    assert padded.input_ids.shape[0] == 4
    assert packed.segment_lengths[:3] == (1, 7, 4)


def test_a_pair_is_never_divided() -> None:
    tokens = TokenDataset.from_examples(pairs())
    for size in (1, 2, 3):
        groups = MicroBatchPolicy(1, size, "never").split(tokens, range(3))
        assert [len(group.rows) for group in groups] == [[1, 1, 1], [2, 1], [3]][size - 1]
    [alone] = MicroBatchPolicy(4096, 1, "always", pad_multiple=1).split(tokens, [1])
    assert alone == MicroBatch((1,), 4)  # its own prompt is shared


def test_without_an_encoder_there_is_no_source(tmp_path: Path) -> None:
    tokens = made(tmp_path, [[(5, False), (6, True)]])
    batch = tokens.batch([0], PAD)
    assert (batch.columns, tokens.max_length) == ({}, 2)
    assert tokens.example(0, "x") == TokenizedExample("x", (5, 6), (False, True))


@given(rows=st.lists(rendered, min_size=0, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_by_length_have_those_that_train_nothing_last(tmp_path: Path, rows: list[list[tuple[int, bool]]]) -> None:
    tokens = made(tmp_path, rows)
    wanted = sorted(range(len(rows)), key=lambda row: (tokens.trained_tokens([row]) == 0, len(rows[row])))
    assert tokens.shortest_first() == wanted
