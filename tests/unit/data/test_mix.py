"""How often each training row is used, by what the recipe says; held-out rows stay as they are."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.data.gather import Gathered, gather
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import Codec

Row = dict[str, Any]
Mix = Callable[..., Gathered]


def rows(name: str, count: int = 100) -> list[Row]:
    return [{"question": f"What does {name} say of {i}?", "answer": f"It says {i * i}.", "n": i} for i in range(count)]


@pytest.fixture
def mix(tmp_path: Path, tokenizer_folder: Path) -> Mix:
    """Write files a.jsonl, b.jsonl and gather them; sources are {name: settings}."""
    codec = Codec.load(tokenizer_folder)

    def gathered(files: dict[str, list[Row]], sources: dict[str, Row] | None = None, **data: Any) -> Gathered:
        for name, lines in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        listed = [{"file": f"{name}.jsonl", **(sources or {}).get(name, {})} for name in files]
        section = {"source": listed if len(listed) > 1 else listed[0], "task": "completion", "prompt": "{question}",
                   "response": "{answer}", "split": {"valid": 0.1, "test": 0.2}, **data}  # fmt: skip
        recipe = Recipe.model_validate({
            "name": "x", "model": {"base": "org/model"}, "tuning": {"method": "full"}, "train": {"learning_rate": 1},
            "data": section, "evaluate": {"metrics": ["exact_match"], "primary": "exact_match"},
        })  # fmt: skip
        return gather(recipe, task_for(recipe.data, codec), folder=tmp_path)

    return gathered


def used(found: Gathered, split: str = "train") -> Counter[str]:
    return Counter(row.entry.where for row in found.used[split])


def test_a_list_reads_one_source_after_the_other(mix: Mix) -> None:
    found = mix({"a": rows("a"), "b": rows("b", 30)}, {"b": {"name": "second"}})
    assert [entry.row for entry in found.entries] == list(range(1, 131))
    assert [(e.source, e.where) for e in found.entries[99:101]] == [("a.jsonl", "a.jsonl:100"), ("second", "b.jsonl:1")]
    sources = found.facts()["sources"]
    assert list(sources) == ["a.jsonl", "second"]
    assert sum(sources["second"].values()) == 30


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.5, 2.0, 3.25])
def test_a_weight_counts_in_train_only_and_exactly(mix: Mix, weight: float) -> None:
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


def test_the_same_recipe_gives_the_same_rows_and_more_rows_move_few(mix: Mix) -> None:
    files = {"a": rows("a"), "b": rows("b")}
    settings = {"b": {"weight": 0.5}}
    first, second = mix(files, settings, train_rows=0.5), mix(files, settings, train_rows=0.5)
    assert first.entries == second.entries
    grown = mix({**files, "b": rows("b", 101)}, settings)
    half = mix(files, settings)
    assert len(set(used(half)) - set(used(grown))) <= 1


def test_train_rows_keeps_the_mixture(mix: Mix) -> None:
    """Both choose by hash; with one hash, rows that a weight has chosen would be chosen again before all others."""
    files = {"a": rows("a", 1500), "b": rows("b", 1500)}
    found = mix(files, {"b": {"weight": 0.5}}, train_rows=0.3)
    shares = {name: counts["train"] for name, counts in found.facts()["sources"].items()}
    assert 1.5 < shares["a.jsonl"] / shares["b.jsonl"] < 2.6


def test_a_fraction_of_the_training_rows(mix: Mix) -> None:
    plain, tenth = mix({"a": rows("a")}), mix({"a": rows("a")}, train_rows=0.1)
    assert len(tenth.used["train"]) == round(0.1 * len(plain.used["train"]))
    assert used(tenth) <= used(plain)
    assert used(tenth, "test") == used(plain, "test")
    assert used(tenth) == used(mix({"a": rows("a")}, train_rows=len(tenth.used["train"])))
    assert len(mix({"a": rows("a")}, train_rows=0.001).used["train"]) == 1


def test_columns_are_renamed_where_a_source_says_so(mix: Mix) -> None:
    other = [{"ask": row["question"], "reply": row["answer"], "n": 1} for row in rows("b")]
    found = mix({"a": rows("a"), "b": other}, {"b": {"rename": {"ask": "question", "reply": "answer"}}})
    assert len(found.entries) == 200
    assert {entry.status for entry in found.entries} == {"kept"}


@pytest.mark.parametrize(("rename", "message"), [
    ({"aks": "question"}, "no column `aks`"), ({"n": "question"}, "two columns the name `question`"),
])  # fmt: skip
def test_renaming_that_cannot_be_is_told(mix: Mix, rename: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=f"b.jsonl:1: .*{message}"):
        mix({"a": rows("a"), "b": rows("b")}, {"b": {"rename": rename}})


def test_two_sources_of_one_name_are_refused(mix: Mix) -> None:
    with pytest.raises(RecipeError, match="two sources are called `same`"):
        mix({"a": rows("a"), "b": rows("b")}, {"a": {"name": "same"}, "b": {"name": "same"}})


def test_an_absolute_path_does_not_enter_the_run(mix: Mix, tmp_path: Path) -> None:
    found = mix({"a": rows("a")}, {"a": {"file": str(tmp_path / "a.jsonl")}})
    assert {(entry.source, entry.where.rpartition(":")[0]) for entry in found.entries} == {("a.jsonl", "a.jsonl")}


# --- filters ---


def test_filtered_rows_are_in_the_ledger_and_are_not_dropped(mix: Mix) -> None:
    found = mix({"a": rows("a")}, filters=[{"column": "n", "min": 80}], max_dropped_fraction=0)
    assert found.facts()["filtered"] == {"`n` is below 80": 80}
    assert found.facts()["counts"]["filtered"] == 80
    left = [entry for entry in found.entries if entry.status == "filtered"]
    assert [entry.row for entry in left] == list(range(1, 81))
    assert {(entry.split, entry.times, entry.reason) for entry in left} == {(None, 0, "`n` is below 80")}


def test_dropped_rows_are_a_part_of_those_that_were_not_filtered(mix: Mix) -> None:
    lines = [*rows("a", 96), *({"question": "?", "answer": "", "n": 90} for _ in range(4))]
    mix({"a": lines}, max_dropped_fraction=0.05)
    with pytest.raises(DataError, match="4 of 20 rows cannot be used"):
        mix({"a": lines}, max_dropped_fraction=0.05, filters=[{"column": "n", "min": 80}])


@pytest.mark.parametrize(("rule", "message"), [
    ({"column": "n", "min": 1000}, "filters leave none of the 100 rows: 100 x `n` is below 1000"),
    ({"column": "m", "min": 0}, "a.jsonl:1: there is no column `m`"),
    ({"column": "answer", "min": 0}, r"100 of 100 rows .* cell `answer` holds no number, first a.jsonl:1 \('It says 0"),
])  # fmt: skip
def test_a_rule_that_cannot_be_meant_is_told(mix: Mix, rule: Row, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        mix({"a": rows("a")}, filters=[rule])
    assert caught.value.exit_code == 3


# --- copies ---


def said(seed: int) -> Row:
    words = [f"word{(seed * 7919 + i * i * 31) % 9973}" for i in range(40)]
    return {"question": " ".join(words[:25]), "answer": " ".join(words[25:]), "fold": "train"}


def test_copies_are_counted_and_named(mix: Mix) -> None:
    lines = [said(i) for i in range(40)]
    lines[10] = {**lines[3], "question": lines[3]["question"].upper()}
    lines[11] = {**lines[4], "answer": lines[4]["answer"] + " indeed"}
    lines[12] = {**lines[5], "answer": "Something else altogether is said here, in many other words than those were."}
    lines[20] = {**lines[6], "fold": "test"}
    lines[21] = {**lines[7], "answer": lines[7]["answer"] + " indeed", "fold": "test"}
    lines[22] = {**lines[22], "fold": "test"}
    lines[23] = {**lines[8], "fold": "valid"}
    found = mix({"a": lines}, split={"column": "fold"}).copies
    counts = {
        key: (found[key]["rows"], found[key]["exact"], found[key]["near"]) for key in ("duplicates", "valid", "test")
    }
    assert counts == {"duplicates": (36, 1, 1), "valid": (1, 1, 0), "test": (3, 1, 1)}
    pairs = {(one["row"], one["of"]) for key in counts for one in found[key]["examples"]}
    assert pairs == {("a.jsonl:11", "a.jsonl:4"), ("a.jsonl:12", "a.jsonl:5"), ("a.jsonl:21", "a.jsonl:7"),
                     ("a.jsonl:22", "a.jsonl:8"), ("a.jsonl:24", "a.jsonl:9")}  # fmt: skip


def test_leakage_warns_or_stops_as_the_recipe_says(mix: Mix, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [*(said(i) for i in range(20)), {**said(3), "fold": "test"}, {**said(99), "fold": "test"}]
    mix({"a": lines}, split={"column": "fold"})
    assert "warning: 1 of 2 test rows stand in train too (1 exactly, 0 nearly): a.jsonl:21 like a.jsonl:4 (1)" in (
        capsys.readouterr().err
    )
    with pytest.raises(DataError, match=r"1 of 2 test rows .*a.jsonl:21 like a.jsonl:4") as caught:
        mix({"a": lines}, split={"column": "fold"}, leakage="stop")
    assert caught.value.exit_code == 3
    mix({"a": lines[:20] + lines[21:]}, split={"column": "fold"}, leakage="stop")
    assert "warning" not in capsys.readouterr().err


def test_rows_that_are_not_trained_on_leak_nothing(mix: Mix) -> None:
    lines = [*(said(i) for i in range(20)), {**said(3), "fold": "test"}]
    found = [mix({"a": lines}, split={"column": "fold"}, train_rows=n).copies["test"]["exact"] for n in range(1, 21)]
    assert found == sorted(found)
    assert {0, 1} == set(found)


def test_duplicates_are_dropped_where_the_recipe_says_so(mix: Mix) -> None:
    lines = [said(i % 10) for i in range(30)] + [{**said(99), "fold": "test"}] * 2
    kept = mix({"a": lines}, split={"column": "fold"})
    dropped = mix({"a": lines}, split={"column": "fold"}, duplicates="drop")
    assert (len(kept.used["train"]), kept.copies["duplicates"]["exact"]) == (30, 20)
    assert (len(dropped.used["train"]), dropped.copies["duplicates"]["exact"]) == (10, 0)
    assert len(dropped.used["test"]) == 2
    assert dropped.facts()["unused"] == {"says what a row before it says": 20}
    assert used(dropped) == Counter(f"a.jsonl:{n}" for n in range(1, 11))


def test_a_weight_makes_no_duplicates(mix: Mix) -> None:
    found = mix({"a": rows("a"), "b": rows("b")}, {"a": {"weight": 3}})
    assert found.copies["duplicates"]["exact"] == 0
