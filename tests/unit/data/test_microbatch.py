"""Micro-batches contain every row once, fit the limits, and no other split is cheaper."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.tokens import write_examples

from tunesmith.core.records import TokenizedExample
from tunesmith.data.microbatch import MicroBatch, MicroBatchPolicy, Packing
from tunesmith.data.token_dataset import TokenDataset, bucket, round_up

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
lengths = st.lists(st.integers(1, 400), min_size=1, max_size=20)
packings = st.sampled_from(["auto", "always", "never"])


def dataset_of(path: Path, lengths: list[int], common: int = 0) -> TokenDataset:
    """Return rows of these lengths with a common prefix, of which the last token is trained."""
    rows = [[*range(min(common, n)), *[1000 + i] * max(0, n - common)] for i, n in enumerate(lengths)]
    write_examples(
        path / "x.safetensors",
        [TokenizedExample(str(i), tuple(row), (*[False] * (len(row) - 1), True)) for i, row in enumerate(rows)],
    )
    return TokenDataset(path / "x.safetensors")


@given(
    lengths=lengths, rows=st.none() | st.integers(1, 30), packing=packings,
    max_tokens=st.sampled_from([1, 100, 512, 4096]),
    common=st.sampled_from([0, 30]), share=st.booleans(), window=st.sampled_from([60, 2**31]),
    packed_attention=st.booleans(),
)  # fmt: skip
@quick
def test_micro_batches_contain_every_row_once_and_fit(
    tmp_path: Path, lengths: list[int], rows: int | None, max_tokens: int, packing: Packing, common: int, share: bool,
    window: int, packed_attention: bool,
) -> None:  # fmt: skip
    tokens = dataset_of(tmp_path, lengths, common)
    micro_batches = MicroBatchPolicy(max_tokens, rows, packing, share, packed_attention, window).split(
        tokens, range(len(lengths))
    )
    assert Counter(row for micro_batch in micro_batches for row in micro_batch.rows) == Counter(range(len(lengths)))
    in_order = [lengths[row] for micro_batch in micro_batches for row in micro_batch.rows]
    assert in_order == sorted(lengths, reverse=True)
    for micro_batch in micro_batches:
        width = bucket(max(lengths[row] for row in micro_batch.rows))
        if micro_batch.shared is None:
            size = len(micro_batch.rows) * width
        else:
            assert packing != "never"
            assert micro_batch.shared == 0 or share
            size = round_up(tokens.packed_tokens(micro_batch.rows, micro_batch.shared), 32)
            whole = tokens.packed_tokens(micro_batch.rows, micro_batch.shared)
            assert (max(lengths[row] for row in micro_batch.rows) if packed_attention else whole) <= window
        assert len(micro_batch.rows) == 1 or size <= max_tokens or rows is not None
    if rows is not None and packing != "always":
        assert [len(micro_batch.rows) for micro_batch in micro_batches[:-1]] == [rows] * (len(micro_batches) - 1)
    assert micro_batches == MicroBatchPolicy(max_tokens, rows, packing, share, packed_attention, window).split(
        tokens, list(range(len(lengths)))
    )


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6), max_tokens=st.sampled_from([1, 160, 400, 1200]),
       packing=packings, packed_attention=st.booleans())  # fmt: skip
@quick
def test_no_other_split_is_cheaper(
    tmp_path: Path, lengths: list[int], max_tokens: int, packing: Packing, packed_attention: bool
) -> None:
    tokens = dataset_of(tmp_path, lengths)
    policy = MicroBatchPolicy(max_tokens, packing=packing, packed_attention=packed_attention)
    micro_batches = policy.split(tokens, range(len(lengths)))
    cost = sum(_cost_of(policy, tokens, micro_batch.rows, micro_batch.shared) for micro_batch in micro_batches)
    cheapest = min(
        sum(_lowest_cost(policy, tokens, part) for part in partition)
        for partition in _partitions(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    )
    assert cost == pytest.approx(cheapest)


def _cost_of(policy: MicroBatchPolicy, tokens: TokenDataset, rows: tuple[int, ...], shared: int | None) -> float:
    width = bucket(int(tokens.lengths[list(rows)].max()))
    packed = policy.packed_length(tokens.packed_tokens(rows, shared or 0))
    if shared is None:
        return policy.cost(len(rows) * width, len(rows) * width**2)
    return policy.cost(
        packed, sum(int(tokens.lengths[row]) ** 2 for row in rows) if policy.packed_attention else packed**2
    )


def _lowest_cost(policy: MicroBatchPolicy, tokens: TokenDataset, rows: tuple[int, ...]) -> float:
    """Return the cost of rows in one micro-batch, packed or padded, whichever fits and is cheaper."""
    width = bucket(int(tokens.lengths[list(rows)].max()))
    fits_padded = len(rows) == 1 or len(rows) * width <= policy.max_tokens
    fits_packed = (
        len(rows) > 1
        and policy.packing != "never"
        and policy.packed_length(tokens.packed_tokens(rows, 0)) <= policy.max_tokens
    )
    costs = [_cost_of(policy, tokens, rows, 0)] * fits_packed
    costs += [_cost_of(policy, tokens, rows, None)] * (fits_padded and (len(rows) == 1 or policy.packing != "always"))
    return min(costs, default=float("inf"))


def _partitions(items: list[int]) -> Iterator[list[tuple[int, ...]]]:
    """Yield every way to divide a list into contiguous parts."""
    if not items:
        yield []
        return
    for size in range(1, len(items) + 1):
        for rest in _partitions(items[size:]):
            yield [tuple(items[:size]), *rest]


def test_rows_with_a_common_prefix_are_packed(tmp_path: Path) -> None:
    tokens = dataset_of(tmp_path, [120] * 8, common=100)
    [micro_batch] = MicroBatchPolicy(2048, packing="auto").split(tokens, range(8))
    assert micro_batch.shared == 100
    assert tokens.packed_tokens(micro_batch.rows, 100) == 100 + 8 * 20
    assert MicroBatchPolicy(2048).split(tokens, range(8)) == [MicroBatch(tuple(range(8)))]


def test_long_rows_without_a_common_prefix_are_not_packed(tmp_path: Path) -> None:
    """With a mask, attention would compute all pairs of the packed sequence and discard most of them."""
    tokens = dataset_of(tmp_path, [1024] * 4)
    assert {micro_batch.shared for micro_batch in MicroBatchPolicy(4096, packing="auto").split(tokens, range(4))} == {
        None
    }
    assert [
        len(micro_batch.rows) for micro_batch in MicroBatchPolicy(4096, packing="always").split(tokens, range(4))
    ] == [4]


def test_packed_attention_packs_rows_of_any_length(tmp_path: Path) -> None:
    tokens = dataset_of(tmp_path, [700, 300, 40, 30])
    [micro_batch] = MicroBatchPolicy(4096, packing="auto", packed_attention=True).split(tokens, range(4))
    assert micro_batch.shared == 0
    assert {micro_batch.shared for micro_batch in MicroBatchPolicy(4096, packing="auto").split(tokens, range(4))} == {
        None,
        0,
    }


def test_split_of_equal_rows_is_deterministic(tmp_path: Path) -> None:
    assert MicroBatchPolicy(1, rows=2).split(dataset_of(tmp_path, [16] * 5), range(5)) == [
        MicroBatch((0, 1)),
        MicroBatch((2, 3)),
        MicroBatch((4,)),
    ]
    tokens = dataset_of(tmp_path, [10, 300, 10, 300])
    assert MicroBatchPolicy(4096).split(tokens, range(4)) == [MicroBatch((1, 3)), MicroBatch((0, 2))]
    assert MicroBatchPolicy(1).split(tokens, []) == []


def test_repeated_row_is_in_the_batch_twice(tmp_path: Path) -> None:
    tokens = dataset_of(tmp_path, [20, 30], common=10)
    [(rows, batch)] = MicroBatchPolicy(4096, packing="always").batches(tokens, [0, 1, 0], 0)
    assert sorted(rows) == [0, 0, 1]
    assert int(batch.loss_mask.sum()) == 3
