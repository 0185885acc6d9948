"""Rows are assigned to ranks evenly, and a single rank never communicates."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.errors import raises

from tunesmith.core.dist_env import RankInfo
from tunesmith.core.errors import RecipeError
from tunesmith.distributed.process_group import ProcessGroup, gradient_buckets

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=40)


@given(lengths=LENGTHS, world=st.integers(1, 9), order=st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_local_rows_partition_the_rows_evenly(lengths: list[int], world: int, order: Any) -> None:
    rows = list(range(len(lengths)))
    order.shuffle(rows)
    shares = [ProcessGroup(RankInfo(rank, world)).local_rows(rows, lengths) for rank in range(world)]
    assert sorted(row for share in shares for row in share) == sorted(rows)
    loads = [sum(lengths[row] for row in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths), "otherwise the last row would have gone to another rank"
    again = [ProcessGroup(RankInfo(rank, world)).local_rows(sorted(rows), lengths) for rank in range(world)]
    assert again == shares or world == 1, "the assignment does not depend on the order of the rows"


def test_a_single_rank_never_communicates() -> None:
    alone = ProcessGroup()
    model = torch.nn.Linear(2, 2)
    alone.sum_gradients(model)
    assert model.weight.grad is None
    assert (alone.sum(1.5, 2), alone.all_gather("x"), alone.run_on_rank0(lambda: 3)) == ([1.5, 2], ["x"], 3)
    assert alone.local_rows([3, 1, 2], [0, 5, 7, 9]) == [3, 1, 2]
    alone.barrier()
    alone.raise_if_interrupted()


def test_run_on_rank0_raises_the_original_error() -> None:
    with pytest.raises(ZeroDivisionError):
        ProcessGroup().run_on_rank0(lambda: 1 // 0)


def test_gradient_buckets_hold_one_dtype_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.distributed.process_group.BUCKET_ELEMENTS", 10)
    sizes = [(4, torch.float32), (6, torch.float32), (1, torch.float32), (2, torch.float64), (30, torch.float64)]
    weights = [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in sizes]
    assert [[weight.numel() for weight in bucket] for bucket in gradient_buckets(weights)] == [[4, 6], [1], [2], [30]]
    assert list(gradient_buckets([])) == []


def test_ranks_with_different_inputs_are_refused() -> None:
    class Two(ProcessGroup):
        def all_gather(self, value: Any) -> list[Any]:
            return [value, {**value, "prepare": "0", "tunesmith": "0"}]

    ProcessGroup().require_equal({"prepare": "a", "seed": 0})
    with raises(RecipeError, "ranks-differ", "rank 1", "prepare, tunesmith"):
        Two(RankInfo(0, 2)).require_equal({"prepare": "a", "seed": 0})
