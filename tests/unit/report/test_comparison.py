"""The comparison of several models as text: scores, verdicts of all pairs, and rows with different answers first."""

from dataclasses import replace
from typing import Any

from tunesmith.core.records import Example, Turn
from tunesmith.core.verdict import Comparison, Verdict
from tunesmith.report.comparison import ComparedModel, ModelComparison, Pair


def comparison(first: float, second: float, low: float, high: float) -> Verdict:
    gain = second - first
    one = Comparison("exact_match", first, second, gain, low, high, 0.95, rows=2, groups=2, groups_needed=None)
    return Verdict(one, {"exact_match": one})


def model(name: str, answers: list[str | None]) -> ComparedModel:
    lines: list[dict[str, Any]] = [
        {
            "row": i + 1, "reference": f"a{i}", "prompt": f"q{i}", "prediction": text or "",
            "error": None if text is not None else "no room", "stopped": text != "no",
        }
        for i, text in enumerate(answers)
    ]  # fmt: skip
    health = {"failed": answers.count(None), "empty": answers.count(""), "cut_off": answers.count("no")}
    return ComparedModel(
        name, f"digest of {name}", ({}, {}), tuple((line,) for line in lines), health, reads_run_tokens=False
    )


EXAMPLES = tuple(Example(str(i), i + 1, str(i), (Turn("assistant", f"a{i}", True),)) for i in range(2))
RESULT = ModelComparison(
    run="runs/x",
    metric="exact_match",
    confidence=0.95,
    models=(model("one", ["", "no"]), model("two", ["", "a1"]), model("three", ["", None])),
    pairs=(
        Pair(0, 1, comparison(0.0, 0.5, 0.1, 0.9)),
        Pair(0, 2, comparison(0.0, 0.0, -0.1, 0.1)),
        Pair(1, 2, comparison(0.5, 0.0, -0.9, -0.1)),
    ),
    examples=EXAMPLES,
    references=("a0", ["a1", "b1"]),
)


def test_the_text_has_every_pair_and_rows_that_differ_first() -> None:
    text = RESULT.to_text(rows=1)
    assert "two is better than one" in text
    assert "does not show whether three is better than one" in text
    assert "three is worse than two" in text
    assert "3 pairs" in text
    assert "1 failed, 1 empty" in text
    assert "1 empty, 1 cut off at the token limit" in text
    assert "row 2" in text
    assert "row 1\n" not in text
    assert "(failed: no room)" in text
    assert "no (cut off at the token limit)" in text
    assert "(empty answer)" not in text
    assert RESULT.to_text(rows=2).count("(empty answer)") == 3
    assert "b1" in text


def test_the_json_names_the_models_of_each_pair() -> None:
    value = RESULT.to_json(rows=2)
    assert [(pair["first"], pair["second"], pair["verdict"]) for pair in value["pairs"]] == [
        ("one", "two", "better"), ("one", "three", "cannot_tell"), ("two", "three", "not_better"),
    ]  # fmt: skip
    assert [one["scores"] for one in value["models"]] == [
        {"exact_match": 0.0},
        {"exact_match": 0.5},
        {"exact_match": 0.0},
    ]
    assert value["answers"][0]["predictions"] == {"one": "no", "two": "a1", "three": None}
    assert value["correction"] == "Bonferroni over 3 pairs"


def test_a_reason_of_some_pairs_names_them() -> None:
    first, second, third = RESULT.pairs
    pairs = tuple(
        replace(pair, verdict=replace(pair.verdict, reasons=("common", *own)))
        for pair, own in ((first, ("no tokens",)), (second, ()), (third, ("no tokens",)))
    )
    assert replace(RESULT, pairs=pairs).reasons()[1:] == ["common", "two against one, three against two: no tokens"]
