"""Near-duplicates are found, merely related texts are not, and shingles of a template do not count."""

import random
import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import similarity
from tunesmith.data.similarity import MinHashIndex, ShingleIndex

VOCABULARY = [f"word{i}" for i in range(5000)]


def text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=words))


def changed(original: str, count: int, seed: int = 0) -> str:
    words = original.split()
    for index in random.Random(seed).sample(range(len(words)), count):
        words[index] = f"other{index}"
    return " ".join(words)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def jaccard(first: str, second: str) -> float:
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def index_of(texts: Iterable[str]) -> MinHashIndex:
    index = ShingleIndex()
    return MinHashIndex(index, [index.add(similarity.shingles(text)) for text in texts])


def near(texts: Iterable[str], train: int, threshold: float = 0.8) -> dict[int, tuple[int, float]]:
    index = index_of(texts)
    return index.nearest(range(train, len(index)), range(train), threshold)


def test_nearest_returns_the_most_similar_text_and_its_jaccard_index() -> None:
    train = [text(i) for i in range(200)] + [changed(text(7), 2)]
    queries = [changed(text(7), 1, seed=5), text(1000)]
    [(query, (original, similarity))] = near(train + queries, len(train)).items()
    assert (query, original) == (201, 7)
    assert similarity == pytest.approx(jaccard(queries[0], train[7]))


@given(st.integers(0, 10_000), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_jaccard_is_that_of_the_shingles(seed: int, count: int) -> None:
    first, second = text(seed), changed(text(seed), count)
    assert index_of([first, second]).jaccard(0, 1) == pytest.approx(jaccard(first, second))


@pytest.mark.parametrize("threshold", [0.5, 0.65, 0.8, 0.9, 1.0])
def test_pairs_above_the_threshold_are_found_and_none_below(threshold: float) -> None:
    train = [text(i, 100) for i in range(300)]
    queries = [changed(text(i, 100), i % 9, seed=i) for i in range(300)]
    similarities = {300 + i: jaccard(queries[i], train[i]) for i in range(300)}
    expected = {query for query, similarity in similarities.items() if similarity >= threshold}
    result = near(train + queries, 300, threshold)
    assert set(result) <= expected
    assert len(result) >= 0.98 * len(expected) > 0
    assert all(original == query - 300 for query, (original, _) in result.items())


def test_text_of_the_pool_is_compared_with_earlier_texts_only() -> None:
    texts = index_of([text(1), text(2), changed(text(1), 1), text(2)])
    assert {query: original for query, (original, _) in texts.nearest(range(4), range(4), 0.8).items()} == {2: 0, 3: 1}


def test_punctuation_counts_but_case_and_whitespace_do_not() -> None:
    original = "Is a < b, or is it not? Write down your opinion about the two of them."
    same = "is  A < b , or is it not ?\nwrite DOWN your opinion about the two of them."
    other = original.replace("<", ">").replace("?", "!").replace(",", ";")
    texts = index_of([original, same, other])
    assert texts.jaccard(0, 1) == 1.0
    assert texts.jaccard(0, 2) < 0.6


def test_shingles_of_a_template_do_not_count() -> None:
    template = text(99, 300)
    texts = [f"{template} {text(i, 20)}" for i in range(100)]
    assert jaccard(texts[0], texts[1]) > 0.8
    assert near(texts, 50) == {}
    copied = near([*texts, f"{template} {changed(text(3, 20), 1)}"], 100, 0.6)
    assert {query: original for query, (original, _) in copied.items()} == {100: 3}


def test_short_texts_are_not_compared() -> None:
    assert near(["yes", "one two three four", "yes", "one two three four"], 2) == {}
    assert near([], 0) == {}
    assert near(["", "  "], 1) == {}


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    original = "東京は日本の首都であり世界最大の都市圏のひとつです"
    assert near([original, original.replace("です", "だ")], 1)


def test_many_texts_with_a_common_start_stay_fast() -> None:
    """Rows of one template fall into the same buckets, and all pairs of them would be too many to compare."""
    template = text(5, 60)
    texts = [f"{template} {text(i, 14)}" for i in range(90)] + [text(1000 + i, 70) for i in range(2000)]
    start = time.process_time()
    near(texts, 1500)
    assert time.process_time() - start < 20


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 64, 2**22])
def test_chunk_size_does_not_change_the_shingles(monkeypatch: pytest.MonkeyPatch, chunk_size: int) -> None:
    texts = [*(text(i, words=5 + i % 9) + " and all of them end like this" for i in range(60)), "", "one", text(99)]
    whole = index_of(texts)
    monkeypatch.setattr(similarity, "_SHINGLES_PER_CHUNK", chunk_size)
    chunked = index_of(texts)
    assert [chunked.shingles(i).tolist() for i in range(len(texts))] == [
        whole.shingles(i).tolist() for i in range(len(texts))
    ]
    assert len(chunked.shingles(0)) < len(shingles(texts[0])), "the common end is a template"
