"""Scores of answers: values known by hand, names, several references, and what is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.scoring.metrics import LIKELIHOOD_METRICS, METRIC_NAMES, expand_metrics, score

TEXT_METRICS = (
    "exact_match", "rouge1", "rouge2", "rouge3", "rougeL", "rougeLsum", "rougeS", "rougeSU", "bleu", "chrf",
)  # fmt: skip


def one(metric: str, prediction: str, reference: str | list[str]) -> float:
    return score([prediction], [reference], [metric])[metric][0]


def test_exact_match_leaves_out_white_space_around_and_nothing_else() -> None:
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
def test_rouge_counts_as_by_hand(metric: str, value: float) -> None:
    assert one(metric, "The cat sat on the mat.", "the cat lay on the mat") == pytest.approx(value)


def test_rouge_is_the_harmonic_mean_of_precision_and_recall() -> None:
    assert one("rouge1", "a b", "a b c d e f") == pytest.approx(2 * 1 * (1 / 3) / (1 + 1 / 3))


def test_rouge_does_not_stem() -> None:
    assert one("rouge1", "running", "runs") == 0


def test_rouge_lsum_takes_lines_as_sentences() -> None:
    assert one("rougeLsum", "b c\na d", "a d\nb c") == 1
    assert one("rougeL", "b c\na d", "a d\nb c") == 0.5


def test_the_best_of_several_references_counts() -> None:
    found = score(["b c", "x"], [["a", "b c", "c d"], "x"], ["exact_match", "rouge1"])
    assert found == {"exact_match": [1, 1], "rouge1": [1, 1]}
    assert one("rouge1", "a b", ["c d", "a c"]) == 0.5


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    import sacrebleu

    rows = [
        ("the cat sat on the mat", ["the cat lay on a mat", "a cat sat on the mat today"]),
        ("the cat", ["the cat sat on the mat"]),
        ("cat", ["cat"]),
        ("", ["the cat"]),
        ("das größte", ["Das Größte!"]),
        ("dog", ["cat"]),
    ]
    found = score([row[0] for row in rows], [row[1] for row in rows], ["bleu", "chrf"])
    bleu = [sacrebleu.sentence_bleu(one, right, use_effective_order=True).score / 100 for one, right in rows]
    chrf = [sacrebleu.sentence_chrf(one, right).score / 100 for one, right in rows]
    assert found == {"bleu": pytest.approx(bleu), "chrf": pytest.approx(chrf)}
    assert found["bleu"][2:4] == found["chrf"][2:4] == [1, 0]
    assert found["bleu"][0] > max(one("bleu", rows[0][0], text) for text in rows[0][1])  # references count together


def test_groups_are_expanded_in_order_and_once() -> None:
    assert expand_metrics(["exact_match", "rouge", "rougeL"]) == (
        "exact_match",
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
    )
    assert list(score(["a"], ["a"], ["rouge", "exact_match"])) == [
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
        "exact_match",
    ]
    assert expand_metrics(LIKELIHOOD_METRICS) == LIKELIHOOD_METRICS
    assert expand_metrics(METRIC_NAMES) == METRIC_NAMES
    assert expand_metrics(["rouge7", "rouge12"]) == ("rouge7", "rouge12")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("rougel", "rougeL"), ("rouge_1", "rouge1"), ("exactmatch", "exact_match"), ("Rouge", "rouge")],
)
def test_a_misspelt_name_is_corrected(name: str, meant: str) -> None:
    with pytest.raises(RecipeError) as refused:
        score(["a"], ["a"], [name])
    assert f"did you mean `{meant}`?" in refused.value.message
    assert refused.value.hint
    assert all(known in refused.value.hint for known in (*METRIC_NAMES, *LIKELIHOOD_METRICS))


@pytest.mark.parametrize("name", ["zzz", "rouge0", "rouge01", "rouge-1", "rouge", "", "a:", "1.5"])
def test_an_unknown_name_is_refused(name: str) -> None:
    if name == "rouge":
        assert len(expand_metrics([name])) == 4
        return
    with pytest.raises(RecipeError):
        expand_metrics([name])


@pytest.mark.parametrize("name", LIKELIHOOD_METRICS)
def test_a_likelihood_needs_a_model(name: str) -> None:
    with pytest.raises(RecipeError) as refused:
        score(["a"], ["a"], [name])
    assert refused.value.hint
    assert "model" in refused.value.hint


def test_execution_needs_a_database() -> None:
    with pytest.raises(RecipeError):
        score(["SELECT 1"], ["SELECT 1"], ["execution"])


@pytest.mark.parametrize(
    ("predictions", "references", "where"),
    [
        (["a", "b"], ["a"], None),
        ("ab", ["a", "b"], None),
        (["a", None], ["a", "b"], "predictions[1]"),
        (["a", "b"], ["a", None], "references[1]"),
        (["a", "b"], ["a", []], "references[1]"),
        (["a", "b"], ["a", ["b", 3]], "references[1]"),
        (["a", "b"], ["a", 3], "references[1]"),
    ],
)
def test_wrong_rows_are_named(predictions: Any, references: Any, where: str | None) -> None:
    with pytest.raises(DataError) as refused:
        score(predictions, references, ["exact_match"])
    assert refused.value.where == where


def test_no_rows_give_no_values() -> None:
    assert score([], [], ["rouge1", "exact_match"]) == {"rouge1": [], "exact_match": []}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), max_size=5))
def test_values_lie_in_0_to_1_for_any_text(rows: list[tuple[str, str]]) -> None:
    found = score([row[0] for row in rows], [row[1] for row in rows], (*TEXT_METRICS, "rougeW", "json_valid"))
    assert list(found) == [*TEXT_METRICS, "rougeW", "json_valid"]
    for values in found.values():
        assert len(values) == len(rows)
        assert all(isinstance(value, float) and 0 <= value <= 1 for value in values)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=3, max_size=12).map(" ".join))
def test_the_reference_itself_is_perfect_and_nothing_is_worth_nothing(text: str) -> None:
    assert all(value == [1.0] for value in score([text], [text], TEXT_METRICS).values())
    assert all(value == [0.0] for value in score([""], [text], TEXT_METRICS).values())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text("ab ", max_size=9), st.text("ab ", max_size=9)), min_size=1, max_size=6))
def test_a_row_is_scored_by_itself(rows: list[tuple[str, str]]) -> None:
    together = score([row[0] for row in rows], [row[1] for row in rows], TEXT_METRICS)
    alone = [score([prediction], [reference], TEXT_METRICS) for prediction, reference in rows]
    assert together == {metric: [row[metric][0] for row in alone] for metric in TEXT_METRICS}


def test_importing_metrics_loads_nothing_heavy() -> None:
    source = Path(__file__).parents[3] / "src"
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r}); import tunesmith.scoring.metrics; "
        "print(sorted({'numpy', 'torch', 'nltk', 'rouge_score', 'sacrebleu', 'sqlite3'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
