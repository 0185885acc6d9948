"""Beginnings of earlier rows are found for the same adapter only, and stay within their memory."""

from random import Random

import pytest
import torch

from tunesmith.inference.prefix_cache import PrefixCache


def tensors(ids: list[int], marker: int = 0) -> list[torch.Tensor]:
    """Return one tensor [1, tokens, 1] with the ids, so that it shows which tokens it is from: 4 bytes a token."""
    return [torch.tensor(ids, dtype=torch.int32).view(1, -1, 1) + marker]


def test_the_longest_beginning_is_found_for_the_same_adapter() -> None:
    cache = PrefixCache(10_000)
    row = list(range(100, 150))
    cache.add("a", row, tensors(row))
    assert cache.longest("b", [*row, 1]) == (0, [])
    assert cache.longest(None, [*row, 1]) == (0, [])
    length, [found] = cache.longest("a", [*row, 1])
    assert length == 50
    assert found.flatten().tolist() == row
    assert cache.longest("a", row)[0] == 49, "the last token of a row is always read"
    assert cache.longest("a", [*row[:40], 7, 8])[0] == 32, "a part of an entry is a multiple of 16 tokens"
    assert cache.longest("a", [*row[:15], 7, 8]) == (0, [])


def test_a_longer_row_replaces_its_beginnings() -> None:
    cache = PrefixCache(10_000)
    row = list(range(60))
    for length in (20, 40, 60):
        cache.add("a", row[:length], tensors(row[:length]))
        assert cache.nbytes == 4 * length
    cache.add("b", row, tensors(row))
    cache.forget("a")
    assert cache.longest("a", [*row, 1]) == (0, [])
    assert cache.longest("b", [*row, 1])[0] == 60
    assert cache.nbytes == 240


def test_the_least_recently_used_row_is_dropped() -> None:
    cache = PrefixCache(3 * 4 * 20)
    rows = {name: [number] * 20 for number, name in enumerate("xyzw")}
    for name in "xyz":
        cache.add(None, rows[name], tensors(rows[name]))
    cache.longest(None, [*rows["x"], 1])
    cache.add(None, rows["w"], tensors(rows["w"]))
    assert [name for name in rows if cache.longest(None, [*rows[name], 9])[0]] == ["x", "z", "w"]
    cache.add(None, list(range(61)), tensors(list(range(61))))
    assert cache.nbytes == 240, "too large"


@pytest.mark.parametrize("seed", range(3))
def test_random_rows_get_tensors_of_their_own_tokens(seed: int) -> None:
    random, cache = Random(seed), PrefixCache(4 * 400)
    hits = 0
    for _ in range(400):
        row = [random.randrange(2) for _ in range(4)] * random.randrange(1, 20) + [random.randrange(3)] * 5
        adapter = random.choice(("a", "b", None))
        length, found = cache.longest(adapter, row)
        marker = {"a": 10, "b": 20, None: 30}[adapter]
        assert length < len(row)
        assert (found[0].flatten().tolist() if length else []) == [token + marker for token in row[:length]]
        hits += length > 0
        cache.add(adapter, row, tensors(row, marker))
        assert cache.nbytes <= 4 * 400
    assert hits > 20
