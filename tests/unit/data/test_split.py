"""Splits and choices follow from a hash of the row alone."""

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.split import assign_split, choose_by_hash, normalize_text

FRACTIONS = {"valid": 0.05, "test": 0.10}
groups = st.lists(st.text(max_size=20), max_size=40)


def test_splits_of_groups_never_change() -> None:
    # Fixed values: a change of the hash would move rows of finished runs from test to train.
    splits = [assign_split(f"row {n}", **FRACTIONS, seed=0) for n in range(40)]
    assert [n for n in range(40) if splits[n] == "test"] == [7, 10, 18, 30]
    assert [n for n in range(40) if splits[n] == "valid"] == [13, 15, 17, 25]


@given(groups, st.integers(0, 2**64), st.integers())
def test_split_does_not_depend_on_order_or_other_groups(names: list[str], seed: int, order: int) -> None:
    before = {name: assign_split(name, **FRACTIONS, seed=seed) for name in names}
    shuffled = [*names, "appended"]
    random.Random(order).shuffle(shuffled)
    after = {name: assign_split(name, **FRACTIONS, seed=seed) for name in shuffled}
    assert {name: after[name] for name in names} == before


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize(("valid", "test"), [(0.05, 0.10), (0.0, 0.5), (0.3, 0.0), (0.01, 0.01)])
def test_splits_have_their_fractions(valid: float, test: float, seed: int) -> None:
    rows = 20_000
    splits = [assign_split(str(n), valid=valid, test=test, seed=seed) for n in range(rows)]
    for name, fraction in {"valid": valid, "test": test, "train": 1 - valid - test}.items():
        deviation = 5 * (fraction * (1 - fraction) / rows) ** 0.5  # five standard deviations
        assert abs(splits.count(name) / rows - fraction) <= deviation


def test_other_seed_gives_another_split() -> None:
    first, second = ([assign_split(str(n), valid=0, test=0.5, seed=seed) for n in range(1000)] for seed in (1, 2))
    assert 400 < sum(a != b for a, b in zip(first, second, strict=True)) < 600


def test_changing_one_fraction_keeps_the_other_split() -> None:
    def members(name: str, valid: float, test: float) -> set[int]:
        return {n for n in range(5000) if assign_split(str(n), valid=valid, test=test, seed=3) == name}

    assert members("test", 0.05, 0.1) == members("test", 0.3, 0.1)
    assert members("valid", 0.05, 0.1) == members("valid", 0.05, 0.4)
    assert members("test", 0.05, 0.1) < members("test", 0.05, 0.2)


@given(groups, st.integers(0, 50), st.integers(0, 99))
def test_choose_by_hash_returns_the_requested_number(ids: list[str], count: int, seed: int) -> None:
    chosen = choose_by_hash(ids, count, seed)
    assert chosen <= set(ids)
    assert len(chosen) == min(count, len(set(ids)))
    assert choose_by_hash(ids[::-1], count, seed) == chosen
    assert choose_by_hash(ids, None, seed) == set(ids)


@given(st.sets(st.text(max_size=5), min_size=1, max_size=60), st.text(min_size=6, max_size=8), st.integers(1, 30))
def test_new_id_replaces_at_most_one(ids: set[str], new: str, count: int) -> None:
    before = choose_by_hash(sorted(ids), count, seed=7)
    after = choose_by_hash([*sorted(ids), new], count, seed=7)
    assert len(before - after) <= 1
    assert after - before <= {new}


def test_choosing_is_independent_of_splitting() -> None:
    # With the hash of the split, no test row would ever be left out, because test rows have the lowest hashes.
    names = [str(n) for n in range(4000)]
    chosen = choose_by_hash(names, 2000, seed=0)
    test = [name for name in names if assign_split(name, valid=0, test=0.25, seed=0) == "test"]
    assert 0.4 < sum(name in chosen for name in test) / len(test) < 0.6


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("How many  heads?\n", "how many heads?"),
        ("\uff26\uff35\uff2c\uff2c width", "full width"),
        ("STRASSE", "straße"),
        ("ﬁne", "fine"),
        ("caf\u0065\u0301", "café"),
        ("a\u00a0b\u2003c", "a b c"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
    ],
)
def test_normalize_text_equates_nearly_identical_prompts(first: str, second: str) -> None:
    assert normalize_text(first) == normalize_text(second)


@pytest.mark.parametrize(("first", "second"), [("a b", "ab"), ("x = 1", "x = 2"), ("cafe", "café"), ("no", "not")])
def test_normalize_text_keeps_different_prompts_apart(first: str, second: str) -> None:
    assert normalize_text(first) != normalize_text(second)


@given(st.text() | st.text(alphabet="eEß \u0301\u0345\u00a8\u200b\u00ad\ufb01\u1e9e\u0130"))
@settings(max_examples=300)
def test_normalize_text_is_idempotent(text: str) -> None:
    key = normalize_text(text)
    assert normalize_text(key) == key
    assert normalize_text(f"  {key} \n") == key


def test_normalize_text_is_idempotent_for_every_character() -> None:
    for start in range(0, 0x110000, 0x100):
        key = normalize_text(" ".join(f"a{chr(code)}b" for code in range(start, start + 0x100)))
        assert normalize_text(key) == key, hex(start)


@given(st.text(alphabet=string.ascii_letters + " \t\n", max_size=30))
def test_normalize_text_ignores_case_and_whitespace(text: str) -> None:
    assert normalize_text(text.upper()) == normalize_text(text.lower()) == normalize_text(text.replace(" ", "\n "))
