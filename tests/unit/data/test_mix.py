"""Weights, train_rows, filters, duplicates and leakage decide how often each training row is used."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data import dataset, dedup
from tunesmith.data.dataset import Dataset, build_dataset
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter

Row = dict[str, Any]
Mix = Callable[..., Dataset]


def rows(name: str, count: int = 100) -> list[Row]:
    return [{"question": f"What does {name} say of {i}?", "answer": f"It says {i * i}.", "n": i} for i in range(count)]


@pytest.fixture
def mix(tmp_path: Path, tokenizer_folder: Path) -> Mix:
    """Return a function that writes a.jsonl, b.jsonl, ... and builds their dataset; sources are {name: settings}."""
    tokenizer = TokenizerAdapter.load(tokenizer_folder)

    def build(files: dict[str, list[Row]], sources: dict[str, Row] | None = None, **data: Any) -> Dataset:
        for name, lines in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        listed = [{"file": f"{name}.jsonl", **(sources or {}).get(name, {})} for name in files]
        section = {"source": listed if len(listed) > 1 else listed[0], "task": "completion", "prompt": "{question}",
                   "response": "{answer}", "split": {"valid": 0.1, "test": 0.2}, **data}  # fmt: skip
        section = {key: value for key, value in section.items() if value is not None}
        recipe = Recipe.model_validate({
            "name": "x", "model": {"base": "org/model"}, "tuning": {"method": "full"}, "train": {"learning_rate": 1},
            "data": section, "evaluate": {"metrics": ["exact_match"], "primary": "exact_match"},
        })  # fmt: skip
        return build_dataset(recipe, task_for(recipe.data, tokenizer), folder=tmp_path)

    return build


DOCUMENTS = {"task": "text", "text": "{question} {answer}", "prompt": None, "response": None,
             "max_tokens_per_example": 200, "too_long": "split", "split": {"column": "fold"}}  # fmt: skip


def used(result: Dataset, split: str = "train") -> Counter[str]:
    return Counter(row.entry.where for row in result.used[split])


def test_sources_are_read_in_order(mix: Mix) -> None:
    result = mix({"a": rows("a"), "b": rows("b", 30)}, {"b": {"name": "second"}})
    assert [entry.row for entry in result.entries] == list(range(1, 131))
    assert [(e.source, e.where) for e in result.entries[99:101]] == [
        ("a.jsonl", "a.jsonl:100"),
        ("second", "b.jsonl:1"),
    ]
    sources = result.facts()["sources"]
    assert list(sources) == ["a.jsonl", "second"]
    assert sum(sources["second"].values()) == 30


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.5, 2.0, 3.25])
def test_weight_repeats_training_rows_exactly_and_no_others(mix: Mix, weight: float) -> None:
    files = {"a": rows("a"), "b": rows("b")}
    plain, weighted = mix(files), mix(files, {"b": {"weight": weight}})
    for split in ("valid", "test"):
        assert used(weighted, split) == used(plain, split)
        assert set(used(plain, split).values()) == {1}
    before = plain.facts()["sources"]["b.jsonl"]["train"]
    assert weighted.facts()["sources"]["b.jsonl"]["train"] == int(weight) * before + round(weight % 1 * before)
    assert weighted.facts()["sources"]["a.jsonl"] == plain.facts()["sources"]["a.jsonl"]
    times = {e.times for e in weighted.entries if e.source == "b.jsonl" and e.split == "train" and e.status == "kept"}
    assert times == {int(weight), int(weight) + 1} - {0} - ({int(weight) + 1} if weight == 2 else set())
    left = [e for e in weighted.entries if e.status == "unused"]
    assert {e.reason for e in left} <= {f"beyond weight {weight:g}"}
    assert sum(e.times for e in weighted.entries if e.split == "train") == len(weighted.used["train"])


def test_choice_of_rows_is_stable(mix: Mix) -> None:
    files = {"a": rows("a"), "b": rows("b")}
    settings = {"b": {"weight": 0.5}}
    first, second = mix(files, settings, train_rows=0.5), mix(files, settings, train_rows=0.5)
    assert first.entries == second.entries
    grown = mix({**files, "b": rows("b", 101)}, settings)
    half = mix(files, settings)
    assert len(set(used(half)) - set(used(grown))) <= 1


def test_train_rows_keeps_the_mixture(mix: Mix) -> None:
    """Both choose by hash; with the same hash, `train_rows` would prefer the rows that the weight has chosen."""
    files = {"a": rows("a", 1500), "b": rows("b", 1500)}
    result = mix(files, {"b": {"weight": 0.5}}, train_rows=0.3)
    shares = {name: counts["train"] for name, counts in result.facts()["sources"].items()}
    assert 1.5 < shares["a.jsonl"] / shares["b.jsonl"] < 2.6


def test_train_rows_may_be_a_fraction(mix: Mix) -> None:
    plain, tenth = mix({"a": rows("a")}), mix({"a": rows("a")}, train_rows=0.1)
    assert len(tenth.used["train"]) == round(0.1 * len(plain.used["train"]))
    assert used(tenth) <= used(plain)
    assert used(tenth, "test") == used(plain, "test")
    assert used(tenth) == used(mix({"a": rows("a")}, train_rows=len(tenth.used["train"])))
    assert len(mix({"a": rows("a")}, train_rows=0.001).used["train"]) == 1


def test_rename_applies_to_its_source_only(mix: Mix) -> None:
    other = [{"ask": row["question"], "reply": row["answer"], "n": 1} for row in rows("b")]
    result = mix({"a": rows("a"), "b": other}, {"b": {"rename": {"ask": "question", "reply": "answer"}}})
    assert len(result.entries) == 200
    assert {entry.status for entry in result.entries} == {"kept"}


@pytest.mark.parametrize(("rename", "code", "column"), [
    ({"aks": "question"}, "missing-column", "`aks`"), ({"n": "question"}, "duplicate-column", "`question`"),
])  # fmt: skip
def test_impossible_rename_is_refused(mix: Mix, rename: dict[str, str], code: str, column: str) -> None:
    with raises(DataError, code, column, where="b.jsonl:1"):
        mix({"a": rows("a"), "b": rows("b")}, {"b": {"rename": rename}})


def test_two_sources_with_one_name_are_refused(mix: Mix) -> None:
    with raises(RecipeError, "duplicate-source", "`same`", where="data.source"):
        mix({"a": rows("a"), "b": rows("b")}, {"a": {"name": "same"}, "b": {"name": "same"}})


def test_ledger_has_no_absolute_path(mix: Mix, tmp_path: Path) -> None:
    result = mix({"a": rows("a")}, {"a": {"file": str(tmp_path / "a.jsonl")}})
    assert {(entry.source, entry.where.rpartition(":")[0]) for entry in result.entries} == {("a.jsonl", "a.jsonl")}


# --- filters ---


def test_filtered_rows_are_in_the_ledger_and_do_not_count_as_dropped(mix: Mix) -> None:
    result = mix({"a": rows("a")}, filters=[{"column": "n", "min": 80}], max_dropped_fraction=0)
    assert result.facts()["filtered"] == {"`n` is below 80": 80}
    assert result.facts()["counts"]["filtered"] == 80
    left = [entry for entry in result.entries if entry.status == "filtered"]
    assert [entry.row for entry in left] == list(range(1, 81))
    assert {(entry.split, entry.times, entry.reason) for entry in left} == {(None, 0, "`n` is below 80")}


def test_dropped_fraction_ignores_filtered_rows(mix: Mix) -> None:
    lines = [*rows("a", 96), *({"question": "?", "answer": "", "n": 90} for _ in range(4))]
    mix({"a": lines}, max_dropped_fraction=0.05)
    with raises(DataError, "too-many-dropped", "4 of 20 rows"):
        mix({"a": lines}, max_dropped_fraction=0.05, filters=[{"column": "n", "min": 80}])


@pytest.mark.parametrize(("rule", "code", "named"), [
    ({"column": "n", "min": 1000}, "no-rows", ("100 x `n` is below 1000",)),
    ({"column": "m", "min": 0}, "missing-column", ("`m`", "a.jsonl:1")),
    ({"column": "answer", "min": 0}, "too-many-dropped", ("100 of 100 rows", "`answer`", "a.jsonl:1 ('It says 0")),
])  # fmt: skip
def test_filter_that_fits_no_row_is_refused(mix: Mix, rule: Row, code: str, named: tuple[str, ...]) -> None:
    with raises(DataError, code, *named):
        mix({"a": rows("a")}, filters=[rule])


# --- duplicates and leakage ---


def sentence(seed: int) -> Row:
    words = [f"word{(seed * 7919 + i * i * 31) % 9973}" for i in range(40)]
    return {"question": " ".join(words[:25]), "answer": " ".join(words[25:]), "fold": "train"}


def test_duplicates_are_counted_with_examples(mix: Mix) -> None:
    lines = [sentence(i) for i in range(40)]
    lines[10] = {**lines[3], "question": lines[3]["question"].upper()}
    lines[11] = {**lines[4], "answer": lines[4]["answer"] + " indeed"}
    lines[12] = {**lines[5], "answer": "Something else altogether is said here, in many other words than those were."}
    lines[20] = {**lines[6], "fold": "test"}
    lines[21] = {**lines[7], "answer": lines[7]["answer"] + " indeed", "fold": "test"}
    lines[22] = {**lines[22], "fold": "test"}
    lines[23] = {**lines[8], "fold": "valid"}
    result = mix({"a": lines}, split={"column": "fold"}).copies
    counts = {
        key: (result[key]["rows"], result[key]["exact"], result[key]["near"]) for key in ("duplicates", "valid", "test")
    }
    assert counts == {"duplicates": (36, 1, 1), "valid": (1, 1, 0), "test": (3, 1, 1)}
    pairs = {(example["row"], example["of"]) for key in counts for example in result[key]["examples"]}
    assert pairs == {("a.jsonl:11", "a.jsonl:4"), ("a.jsonl:12", "a.jsonl:5"), ("a.jsonl:21", "a.jsonl:7"),
                     ("a.jsonl:22", "a.jsonl:8"), ("a.jsonl:24", "a.jsonl:9")}  # fmt: skip


def test_leakage_policy_warns_or_raises(mix: Mix, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [*(sentence(i) for i in range(20)), {**sentence(3), "fold": "test"}, {**sentence(99), "fold": "test"}]
    mix({"a": lines}, split={"column": "fold"})
    log = capsys.readouterr().err
    assert "warning: 1 of 2 test rows" in log
    assert "a.jsonl:21 like a.jsonl:4 (1)" in log
    with raises(DataError, "leakage", "1 of 2 test rows", "a.jsonl:21 like a.jsonl:4", where="data.leakage"):
        mix({"a": lines}, split={"column": "fold"}, leakage="error")
    mix({"a": lines[:20] + lines[21:]}, split={"column": "fold"}, leakage="error")
    assert "warning" not in capsys.readouterr().err


def test_unused_training_rows_are_no_leakage(mix: Mix) -> None:
    lines = [*(sentence(i) for i in range(20)), {**sentence(3), "fold": "test"}]
    result = [mix({"a": lines}, split={"column": "fold"}, train_rows=n).copies["test"]["exact"] for n in range(1, 21)]
    assert result == sorted(result)
    assert {0, 1} == set(result)


def test_duplicates_are_dropped_on_request(mix: Mix) -> None:
    lines = [sentence(i % 10) for i in range(30)] + [{**sentence(99), "fold": "test"}] * 2
    kept = mix({"a": lines}, split={"column": "fold"})
    dropped = mix({"a": lines}, split={"column": "fold"}, duplicates="drop")
    assert (len(kept.used["train"]), kept.copies["duplicates"]["exact"]) == (30, 20)
    assert (len(dropped.used["train"]), dropped.copies["duplicates"]["exact"]) == (10, 0)
    assert len(dropped.used["test"]) == 2
    assert dropped.facts()["unused"] == {"duplicate of an earlier row": 20}
    assert used(dropped) == Counter(f"a.jsonl:{n}" for n in range(1, 11))


def test_document_in_blocks_counts_as_one_row_for_duplicates_and_leakage(mix: Mix) -> None:
    lines = [sentence(i % 6) for i in range(12)] + [{**sentence(i), "fold": "test"} for i in (3, 98, 99)]
    kept = mix({"a": lines}, **DOCUMENTS)
    assert min(used(kept).values()) >= 2
    assert {key: (kept.copies[key]["rows"], kept.copies[key]["exact"]) for key in ("duplicates", "test")} == {
        "duplicates": (12, 6), "test": (3, 1),
    }  # fmt: skip
    assert kept.copies["duplicates"]["near"] == 0  # blocks of one document do not duplicate each other
    dropped = mix({"a": lines}, **DOCUMENTS, duplicates="drop", leakage="drop")
    assert used(dropped) == Counter({where: n for where, n in used(kept).items() if int(where[8:]) in (1, 2, 3, 5, 6)})
    left = [entry for entry in dropped.entries if entry.status == "unused"]
    assert {entry.row for entry in left} == {4, 7, 8, 9, 10, 11, 12}
    assert all(entry.block for entry in left)
    assert dropped.facts()["blocks"] == {"documents": 15, "blocks": len(dropped.entries)}
    assert used(dropped, "test") == used(kept, "test")


def test_weights_and_train_rows_count_blocks(mix: Mix) -> None:
    files = {name: [{**sentence(10 * k + i), "fold": "train" if i < 8 else "test"} for i in range(10)]
             for k, name in enumerate("ab")}  # fmt: skip
    split = {key: value for key, value in DOCUMENTS.items() if key != "split"} | {"split": {"column": "fold"}}
    plain = mix(files, **split)
    count = plain.facts()["sources"]["b.jsonl"]["train"]
    assert count > 8
    assert mix(files, {"b": {"weight": 0.5}}, **split).facts()["sources"]["b.jsonl"]["train"] == round(count / 2)
    assert len(mix(files, train_rows=5, **split).used["train"]) == 5


# --- leakage: drop ---


def near(row: Row, seed: int) -> Row:
    """Return a row with one word of its question changed."""
    words = row["question"].split()
    words[seed % len(words)] = f"other{seed}"
    return {**row, "question": " ".join(words)}


def leaking_lines() -> list[Row]:
    """Return 40 training rows, of which rows 3 to 8 duplicate or nearly duplicate held-out rows, and the latter."""
    lines = [sentence(i) for i in range(40)]
    lines[3] = near(sentence(200), 1)  # three rows are near one test row
    lines[4] = near(sentence(200), 9)
    lines[5] = near(sentence(200), 17)
    lines[6] = near(sentence(201), 3)  # one row is near two test rows
    lines[7] = {**sentence(203), "question": sentence(203)["question"].upper()}
    lines[8] = near(sentence(204), 5)
    held_out = [
        sentence(200),
        sentence(201),
        near(sentence(201), 4),
        sentence(203),
        *(sentence(i) for i in range(300, 310)),
    ]
    valid = [sentence(204), sentence(400)]
    return lines + [{**row, "fold": "test"} for row in held_out] + [{**row, "fold": "valid"} for row in valid]


def test_leakage_drop_leaves_out_all_duplicates_of_held_out_rows(mix: Mix, capsys: pytest.CaptureFixture[str]) -> None:
    warned = mix({"a": leaking_lines()}, split={"column": "fold"})
    assert (warned.copies["test"]["near"], warned.copies["valid"]["near"]) == (3, 1)
    assert "left_out" not in warned.copies
    capsys.readouterr()
    result = mix({"a": leaking_lines()}, split={"column": "fold"}, leakage="drop")
    assert {entry.row: entry.reason for entry in result.entries if entry.status == "unused"} == {
        4: "near-duplicate of a test row", 5: "near-duplicate of a test row",
        6: "near-duplicate of a test row", 7: "near-duplicate of a test row",
        8: "duplicate of a test row", 9: "near-duplicate of a valid row",
    }  # fmt: skip
    assert result.facts()["unused"] == {
        "near-duplicate of a test row": 4, "duplicate of a test row": 1, "near-duplicate of a valid row": 1,
    }  # fmt: skip
    for split in ("valid", "test"):
        assert used(result, split) == used(warned, split)
        assert (result.copies[split]["exact"], result.copies[split]["near"]) == (0, 0)
    left_out = result.copies["left_out"]
    assert (left_out["exact"], left_out["near"], len(left_out["examples"])) == (1, 5, 5)
    assert left_out["examples"][0] == {"row": "a.jsonl:8", "of": "a.jsonl:44", "similarity": 1.0}
    log = capsys.readouterr().err
    assert "6 training rows" in log
    assert "a.jsonl:8 like a.jsonl:44" in log
    assert "warning" not in log


def test_all_duplicates_of_a_row_are_found_in_one_comparison(mix: Mix, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing many rows takes long, so it must not be repeated for each duplicate."""
    calls = []

    def compare(*args: Any) -> dedup.SplitComparison:
        calls.append(args)
        return dedup.SplitComparison(*args)

    monkeypatch.setattr(dataset, "SplitComparison", compare)
    lines = [sentence(i) for i in range(9)] + [near(sentence(200), i) for i in range(8)] + [sentence(201)] * 5
    held_out = [{**sentence(i), "fold": "test"} for i in (200, 201, 202)]
    result = mix({"a": lines + held_out}, split={"column": "fold"}, leakage="drop")
    assert (len(result.used["train"]), len(calls)) == (9, 2)


def test_replacements_of_left_out_rows_are_no_duplicates(mix: Mix) -> None:
    lines = [sentence(i) for i in range(30)] + [{**near(sentence(i), i), "fold": "test"} for i in range(20)]
    for count in (1, 5, 10):
        result = mix({"a": lines}, split={"column": "fold"}, leakage="drop", train_rows=count)
        assert len(result.used["train"]) == count
        assert {int(where[8:]) for where in used(result)} <= set(range(21, 31))
        assert result.copies["test"]["near"] == 0


def test_duplicate_missed_from_one_side_is_found_from_the_other(mix: Mix) -> None:
    """A training row is compared with the few most likely of many similar held-out rows, so it may be missed."""
    words = [f"word{i}" for i in range(120)]

    def variant(seed: int, changes: int) -> Row:
        variant_words = list(words)
        for place in random.Random(seed).sample(range(0, 120, 3), changes):
            variant_words[place] = f"other{seed}"
        return {"question": " ".join(variant_words), "answer": "It is so.", "fold": "test"}

    others = [sentence(i) for i in range(600)]
    row = {**variant(99, 0), "fold": "train"}
    similar = [*(variant(i, 5) for i in range(50)), variant(1000, 4)]
    warned = mix(
        {"a": [row, *others, *similar]}, split={"column": "fold"}, leakage="warn", near_duplicate_threshold=0.81
    )
    assert warned.copies["test"]["near"] == 1
    result = mix(
        {"a": [row, *others, *similar]}, split={"column": "fold"}, leakage="drop", near_duplicate_threshold=0.81
    )
    assert result.copies["test"]["near"] == 0
    assert result.entries[0].status == "unused"


def test_empty_train_split_error_counts_left_out_rows(mix: Mix) -> None:
    lines = [sentence(i) for i in range(3)] + [{**sentence(i), "fold": "test"} for i in range(5)]
    with raises(DataError, "empty-split", "train", "3 left out"):
        mix({"a": lines}, split={"column": "fold"}, leakage="drop")


def test_weight_creates_no_duplicates(mix: Mix) -> None:
    result = mix({"a": rows("a"), "b": rows("b")}, {"a": {"weight": 3}})
    assert result.copies["duplicates"]["exact"] == 0
