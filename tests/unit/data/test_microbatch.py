"""However a step's rows are divided, each is there once, no division is cheaper, and all of them fit."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.core.records import TokenizedExample
from tunesmith.data.microbatch import MicroBatch, MicroBatchPolicy, Packing
from tunesmith.data.token_dataset import TokenDataset, bucket, round_up
from tunesmith.data.token_file import write_tokens

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
lengths = st.lists(st.integers(1, 400), min_size=1, max_size=20)
packings = st.sampled_from(["auto", "always", "never"])


def made(path: Path, lengths: list[int], common: int = 0) -> TokenDataset:
    """Return rows of these lengths that begin with the same tokens and learn their last one."""
    rows = [[*range(min(common, n)), *[1000 + i] * max(0, n - common)] for i, n in enumerate(lengths)]
    write_tokens(
        path / "x.safetensors",
        [TokenizedExample(str(i), tuple(row), (*[False] * (len(row) - 1), True)) for i, row in enumerate(rows)],
    )
    return TokenDataset(path / "x.safetensors")


@given(
    lengths=lengths, rows=st.none() | st.integers(1, 30), most=st.sampled_from([1, 100, 512, 4096]), packing=packings,
    common=st.sampled_from([0, 30]), share=st.booleans(), reach=st.sampled_from([60, 2**31]),
    by_row=st.booleans(),
)  # fmt: skip
@quick
def test_rows_are_divided_and_fit(
    tmp_path: Path, lengths: list[int], rows: int | None, most: int, packing: Packing, common: int, share: bool,
    reach: int, by_row: bool,
) -> None:  # fmt: skip
    tokens = made(tmp_path, lengths, common)
    found = MicroBatchPolicy(most, rows, packing, share, by_row, reach).split(tokens, range(len(lengths)))
    assert Counter(row for group in found for row in group.rows) == Counter(range(len(lengths)))
    in_order = [lengths[row] for group in found for row in group.rows]
    assert in_order == sorted(lengths, reverse=True)
    for group in found:
        width = bucket(max(lengths[row] for row in group.rows))
        if group.shared is None:
            size = len(group.rows) * width
        else:
            assert packing != "never"
            assert group.shared == 0 or share
            size = round_up(tokens.packed_tokens(group.rows, group.shared), 32)
            whole = tokens.packed_tokens(group.rows, group.shared)
            assert (max(lengths[row] for row in group.rows) if by_row else whole) <= reach
        assert len(group.rows) == 1 or size <= most or rows is not None
    if rows is not None and packing != "always":
        assert [len(group.rows) for group in found[:-1]] == [rows] * (len(found) - 1)
    assert found == MicroBatchPolicy(most, rows, packing, share, by_row, reach).split(tokens, list(range(len(lengths))))


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6), most=st.sampled_from([1, 160, 400, 1200]),
       packing=packings, by_row=st.booleans())  # fmt: skip
@quick
def test_no_division_is_cheaper(tmp_path: Path, lengths: list[int], most: int, packing: Packing, by_row: bool) -> None:
    tokens = made(tmp_path, lengths)
    rule = MicroBatchPolicy(most, packing=packing, packed_attention=by_row)
    found = rule.split(tokens, range(len(lengths)))
    spent = sum(_cost_of(rule, tokens, group.rows, group.shared) for group in found)
    cheapest = min(
        sum(_least(rule, tokens, part) for part in division)
        for division in _divisions(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    )
    assert spent == pytest.approx(cheapest)


def _cost_of(rule: MicroBatchPolicy, tokens: TokenDataset, rows: tuple[int, ...], shared: int | None) -> float:
    width = bucket(int(tokens.lengths[list(rows)].max()))
    packed = rule.packed_length(tokens.packed_tokens(rows, shared or 0))
    if shared is None:
        return rule.cost(len(rows) * width, len(rows) * width**2)
    return rule.cost(packed, sum(int(tokens.lengths[row]) ** 2 for row in rows) if rule.packed_attention else packed**2)


def _least(rule: MicroBatchPolicy, tokens: TokenDataset, rows: tuple[int, ...]) -> float:
    """Return the cost of a part in its cheaper form that fits."""
    width = bucket(int(tokens.lengths[list(rows)].max()))
    plain = len(rows) == 1 or len(rows) * width <= rule.max_tokens
    packed = (
        len(rows) > 1
        and rule.packing != "never"
        and rule.packed_length(tokens.packed_tokens(rows, 0)) <= rule.max_tokens
    )
    costs = [_cost_of(rule, tokens, rows, 0)] * packed
    costs += [_cost_of(rule, tokens, rows, None)] * (plain and (len(rows) == 1 or rule.packing != "always"))
    return min(costs, default=float("inf"))


def _divisions(items: list[int]) -> Iterator[list[tuple[int, ...]]]:
    """Yield every way to cut a list into parts."""
    if not items:
        yield []
        return
    for size in range(1, len(items) + 1):
        for others in _divisions(items[size:]):
            yield [tuple(items[:size]), *others]


def test_a_common_beginning_brings_rows_into_one_sequence(tmp_path: Path) -> None:
    tokens = made(tmp_path, [120] * 8, common=100)
    [group] = MicroBatchPolicy(2048, packing="auto").split(tokens, range(8))
    assert group.shared == 100
    assert tokens.packed_tokens(group.rows, 100) == 100 + 8 * 20
    assert MicroBatchPolicy(2048).split(tokens, range(8)) == [MicroBatch(tuple(range(8)))]


def test_long_rows_alike_stay_apart(tmp_path: Path) -> None:
    """Beside each other they would look at a mask of their whole length, for nothing."""
    tokens = made(tmp_path, [1024] * 4)
    assert {group.shared for group in MicroBatchPolicy(4096, packing="auto").split(tokens, range(4))} == {None}
    assert [len(group.rows) for group in MicroBatchPolicy(4096, packing="always").split(tokens, range(4))] == [4]


def test_rows_of_any_length_share_a_sequence_where_each_is_attended_by_itself(tmp_path: Path) -> None:
    tokens = made(tmp_path, [700, 300, 40, 30])
    [group] = MicroBatchPolicy(4096, packing="auto", packed_attention=True).split(tokens, range(4))
    assert group.shared == 0
    assert {one.shared for one in MicroBatchPolicy(4096, packing="auto").split(tokens, range(4))} == {None, 0}


def test_equal_rows_are_cut_alike_every_time(tmp_path: Path) -> None:
    assert MicroBatchPolicy(1, rows=2).split(made(tmp_path, [16] * 5), range(5)) == [
        MicroBatch((0, 1)),
        MicroBatch((2, 3)),
        MicroBatch((4,)),
    ]
    tokens = made(tmp_path, [10, 300, 10, 300])
    assert MicroBatchPolicy(4096).split(tokens, range(4)) == [MicroBatch((1, 3)), MicroBatch((0, 2))]
    assert MicroBatchPolicy(1).split(tokens, []) == []


def test_a_row_twice_is_there_twice(tmp_path: Path) -> None:
    tokens = made(tmp_path, [20, 30], common=10)
    [(rows, batch)] = MicroBatchPolicy(4096, packing="always").batches(tokens, [0, 1, 0], 0)
    assert sorted(rows) == [0, 0, 1]
    assert int(batch.loss_mask.sum()) == 3
