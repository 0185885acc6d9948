"""Near copies are found, kin are not, and what many texts share counts for nothing."""

import random
import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import similarity
from tunesmith.data.similarity import MinHashIndex

VOCABULARY = [f"word{i}" for i in range(5000)]


def text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=words))


def changed(original: str, count: int, seed: int = 0) -> str:
    words = original.split()
    for place in random.Random(seed).sample(range(len(words)), count):
        words[place] = f"other{place}"
    return " ".join(words)


def runs(one: str) -> set[tuple[str, ...]]:
    words = one.split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def jaccard(one: str, other: str) -> float:
    a, b = runs(one), runs(other)
    return len(a & b) / len(a | b)


def near(texts: Iterable[str], train: int, threshold: float = 0.8) -> dict[int, tuple[int, float]]:
    found = MinHashIndex(texts)
    return found.nearest(range(train, len(found)), range(train), threshold)


def test_the_most_similar_text_is_found_with_its_jaccard_index() -> None:
    train = [text(i) for i in range(200)] + [changed(text(7), 2)]
    asked = [changed(text(7), 1, seed=5), text(1000)]
    [(place, (of, similarity))] = near(train + asked, len(train)).items()
    assert (place, of) == (201, 7)
    assert similarity == pytest.approx(jaccard(asked[0], train[7]))


@given(st.integers(0, 10_000), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_the_similarity_is_that_of_the_sets_of_runs(seed: int, count: int) -> None:
    one, other = text(seed), changed(text(seed), count)
    assert MinHashIndex([one, other]).jaccard(0, 1) == pytest.approx(jaccard(one, other))


@pytest.mark.parametrize("threshold", [0.5, 0.65, 0.8, 0.9, 1.0])
def test_pairs_above_the_threshold_are_found_and_none_below(threshold: float) -> None:
    train = [text(i, 100) for i in range(300)]
    asked = [changed(text(i, 100), i % 9, seed=i) for i in range(300)]
    alike = {300 + i: jaccard(asked[i], train[i]) for i in range(300)}
    expected = {place for place, similarity in alike.items() if similarity >= threshold}
    found = near(train + asked, 300, threshold)
    assert set(found) <= expected
    assert len(found) >= 0.98 * len(expected) > 0
    assert all(of == place - 300 for place, (of, _) in found.items())


def test_within_one_set_a_text_is_compared_with_those_before_it() -> None:
    texts = MinHashIndex([text(1), text(2), changed(text(1), 1), text(2)])
    assert {place: of for place, (of, _) in texts.nearest(range(4), range(4), 0.8).items()} == {2: 0, 3: 1}


def test_case_space_and_form_do_not_count_but_marks_do() -> None:
    said = "Is a < b, or is it not? Say what you think about the two of them."
    same = "is  A < b , or is it not ?\nsay WHAT you think about the two of them."
    other = said.replace("<", ">").replace("?", "!").replace(",", ";")
    texts = MinHashIndex([said, same, other])
    assert texts.jaccard(0, 1) == 1.0
    assert texts.jaccard(0, 2) < 0.6


def test_what_a_template_gives_to_all_rows_counts_for_nothing() -> None:
    frame = text(99, 300)
    texts = [f"{frame} {text(i, 20)}" for i in range(100)]
    assert jaccard(texts[0], texts[1]) > 0.8
    assert near(texts, 50) == {}
    copied = near([*texts, f"{frame} {changed(text(3, 20), 1)}"], 100, 0.6)
    assert {place: of for place, (of, _) in copied.items()} == {100: 3}


def test_short_texts_are_not_compared() -> None:
    assert near(["yes", "one two three four", "yes", "one two three four"], 2) == {}
    assert near([], 0) == {}
    assert near(["", "  "], 1) == {}


def test_writing_without_blanks_is_compared_by_its_characters() -> None:
    said = "東京は日本の首都であり世界最大の都市圏のひとつです"
    assert near([said, said.replace("です", "だ")], 1)


def test_many_texts_with_one_beginning_stay_quick() -> None:
    """Rows of one pattern fall into the same buckets; they must not be compared each with each."""
    frame = text(5, 60)
    texts = [f"{frame} {text(i, 14)}" for i in range(90)] + [text(1000 + i, 70) for i in range(2000)]
    began = time.process_time()
    near(texts, 1500)
    assert time.process_time() - began < 20


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2, 7, 64, 2**22])
def test_runs_are_counted_alike_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    texts = [*(text(i, words=5 + i % 9) + " and so they all say the same" for i in range(60)), "", "one", text(99)]
    whole = MinHashIndex(texts)
    monkeypatch.setattr(similarity, "_RUNS_AT_ONCE", at_once)
    parts = MinHashIndex(texts)
    assert [parts.runs(i).tolist() for i in range(len(texts))] == [whole.runs(i).tolist() for i in range(len(texts))]
    assert len(parts.runs(0)) < len(runs(texts[0])), "what all of them have is a template"
