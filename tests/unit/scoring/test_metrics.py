"""Built-in metrics: values computed by hand, names, several references, and invalid input."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.errors import raises

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.scoring.metrics import LIKELIHOOD_METRICS, METRIC_NAMES, expand_metrics, score

TEXT_METRICS = (
    "exact_match", "rouge1", "rouge2", "rouge3", "rougeL", "rougeLsum", "rougeS", "rougeSU", "bleu", "chrf",
)  # fmt: skip


def score_one(metric: str, prediction: str, reference: str | list[str]) -> float:
    return score([prediction], [reference], [metric])[metric][0]


def test_exact_match_ignores_only_surrounding_white_space() -> None:
    predictions = ["yes", " yes\n", "Yes", "yes.", ""]
    assert score(predictions, ["yes"] * 5, ["exact_match"]) == {"exact_match": [1.0, 1.0, 0.0, 0.0, 0.0]}


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        # the cat sat on the mat / the cat lay on the mat: 5 of 6 words, 3 of 5 pairs, 1 of 4 triples
        ("rouge1", 5 / 6),
        ("rouge2", 3 / 5),
        ("rouge3", 1 / 4),
        ("rougeL", 5 / 6),
        ("rougeLsum", 5 / 6),
    ],
)
def test_rouge_computed_by_hand(metric: str, value: float) -> None:
    assert score_one(metric, "The cat sat on the mat.", "the cat lay on the mat") == pytest.approx(value)


def test_rouge_is_the_harmonic_mean_of_precision_and_recall() -> None:
    assert score_one("rouge1", "a b", "a b c d e f") == pytest.approx(2 * 1 * (1 / 3) / (1 + 1 / 3))


def test_rouge_does_not_stem() -> None:
    assert score_one("rouge1", "running", "runs") == 0


def test_rouge_lsum_treats_lines_as_sentences() -> None:
    assert score_one("rougeLsum", "b c\na d", "a d\nb c") == 1
    assert score_one("rougeL", "b c\na d", "a d\nb c") == 0.5


def test_best_of_several_references_counts() -> None:
    values = score(["b c", "x"], [["a", "b c", "c d"], "x"], ["exact_match", "rouge1"])
    assert values == {"exact_match": [1, 1], "rouge1": [1, 1]}
    assert score_one("rouge1", "a b", ["c d", "a c"]) == 0.5


def test_bleu_and_chrf_equal_sacrebleu() -> None:
    import sacrebleu

    rows = [
        ("the cat sat on the mat", ["the cat lay on a mat", "a cat sat on the mat today"]),
        ("the cat", ["the cat sat on the mat"]),
        ("cat", ["cat"]),
        ("", ["the cat"]),
        ("das größte", ["Das Größte!"]),
        ("dog", ["cat"]),
    ]
    values = score([row[0] for row in rows], [row[1] for row in rows], ["bleu", "chrf"])
    bleu = [sacrebleu.sentence_bleu(text, right, use_effective_order=True).score / 100 for text, right in rows]
    chrf = [sacrebleu.sentence_chrf(text, right).score / 100 for text, right in rows]
    assert values == {"bleu": pytest.approx(bleu), "chrf": pytest.approx(chrf)}
    assert values["bleu"][2:4] == values["chrf"][2:4] == [1, 0]
    single = [score_one("bleu", rows[0][0], text) for text in rows[0][1]]
    assert values["bleu"][0] > max(single), "an n-gram may be in any of the references"


def test_groups_of_metrics_are_expanded_in_order() -> None:
    rouge = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    assert expand_metrics(["exact_match", "rouge", "rougeL"]) == ("exact_match", *rouge)
    assert list(score(["a"], ["a"], ["rouge", "exact_match"])) == [*rouge, "exact_match"]
    assert expand_metrics(LIKELIHOOD_METRICS) == LIKELIHOOD_METRICS
    assert expand_metrics(METRIC_NAMES) == METRIC_NAMES
    assert expand_metrics(["rouge7", "rouge12"]) == ("rouge7", "rouge12")


@pytest.mark.parametrize(
    ("name", "near"),
    [("rougel", "rougeL"), ("rouge_1", "rouge1"), ("exactmatch", "exact_match"), ("Rouge", "rouge")],
)
def test_misspelled_metric_is_suggested(name: str, near: str) -> None:
    with raises(RecipeError, "unknown-metric", f"`{near}`", *METRIC_NAMES, *LIKELIHOOD_METRICS):
        score(["a"], ["a"], [name])


@pytest.mark.parametrize("name", ["zzz", "rouge0", "rouge01", "rouge-1", "", "a:", "1.5"])
def test_unknown_metric_is_refused(name: str) -> None:
    with raises(RecipeError, "unknown-metric"):
        expand_metrics([name])


@pytest.mark.parametrize("name", LIKELIHOOD_METRICS)
def test_likelihood_metric_needs_a_model(name: str) -> None:
    with raises(RecipeError, "metric-needs-model", name):
        score(["a"], ["a"], [name])


def test_execution_needs_a_database() -> None:
    with raises(RecipeError, "no-database"):
        score(["SELECT 1"], ["SELECT 1"], ["execution"])


@pytest.mark.parametrize(
    ("predictions", "references", "code", "where"),
    [
        (["a", "b"], ["a"], "unequal-lengths", None),
        ("ab", ["a", "b"], "not-text", None),
        (["a", None], ["a", "b"], "not-text", "predictions[1]"),
        (["a", "b"], ["a", None], "not-text", "references[1]"),
        (["a", "b"], ["a", []], "not-text", "references[1]"),
        (["a", "b"], ["a", ["b", 3]], "not-text", "references[1]"),
        (["a", "b"], ["a", 3], "not-text", "references[1]"),
    ],
)
def test_invalid_rows_are_named(predictions: Any, references: Any, code: str, where: str | None) -> None:
    with raises(DataError, code) as error:
        score(predictions, references, ["exact_match"])
    assert error.value.where == where


def test_no_rows_give_no_values() -> None:
    assert score([], [], ["rouge1", "exact_match"]) == {"rouge1": [], "exact_match": []}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), max_size=5))
def test_values_are_from_0_to_1_for_any_text(rows: list[tuple[str, str]]) -> None:
    scores = score([row[0] for row in rows], [row[1] for row in rows], (*TEXT_METRICS, "rougeW", "json_valid"))
    assert list(scores) == [*TEXT_METRICS, "rougeW", "json_valid"]
    for values in scores.values():
        assert len(values) == len(rows)
        assert all(isinstance(value, float) and 0 <= value <= 1 for value in values)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=3, max_size=12).map(" ".join))
def test_reference_scores_1_and_empty_answer_scores_0(text: str) -> None:
    assert all(value == [1.0] for value in score([text], [text], TEXT_METRICS).values())
    assert all(value == [0.0] for value in score([""], [text], TEXT_METRICS).values())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text("ab ", max_size=9), st.text("ab ", max_size=9)), min_size=1, max_size=6))
def test_scores_of_a_row_do_not_depend_on_other_rows(rows: list[tuple[str, str]]) -> None:
    together = score([row[0] for row in rows], [row[1] for row in rows], TEXT_METRICS)
    alone = [score([prediction], [reference], TEXT_METRICS) for prediction, reference in rows]
    assert together == {metric: [row[metric][0] for row in alone] for metric in TEXT_METRICS}


def test_importing_metrics_loads_no_heavy_package() -> None:
    source = Path(__file__).parents[3] / "src"
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r}); import tunesmith.scoring.metrics; "
        "print(sorted({'numpy', 'torch', 'nltk', 'rouge_score', 'sacrebleu', 'sqlite3'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
