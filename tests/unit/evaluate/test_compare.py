"""The verdict of a run: directions of metrics, guards, reasons, groups, failed rows, and weights of tokens."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.errors import raises

from tunesmith.core.errors import DataError
from tunesmith.core.jsonl import read_jsonl, write_jsonl
from tunesmith.core.records import Example
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict_reader import parse_verdict
from tunesmith.evaluate.compare import compare_models, corpus_scores
from tunesmith.evaluate.model_scores import write_scores
from tunesmith.inference.scorer import Scorer
from tunesmith.recipe.data_source import Split
from tunesmith.recipe.schema import Recipe
from tunesmith.registry.gate import refusal_reasons
from tunesmith.scoring.corpus import corpus_bleu
from tunesmith.scoring.row_scores import VerdictSettings
from tunesmith.scoring.standalone import compare_files
from tunesmith.scoring.verdict import paired_verdict

ROWS = 60
GROUPS = [str(row) for row in range(ROWS)]
Lines = list[dict[str, Any]]


def recipe(metrics: list[str], primary: str, *, min_gain: float | None = None, **evaluate: Any) -> Recipe:
    return Recipe.model_validate({
        "name": "x", "model": {"base": "org/model"},
        "data": {"task": "text", "text": "t", "source": {"file": "x.csv"}},
        "tuning": {"method": "full"}, "train": {"learning_rate": 1e-4},
        "evaluate": {"metrics": metrics, "primary": primary, **evaluate},
        "promote": None if min_gain is None else {"model": "m", "min_gain": min_gain}, "seed": 5,
    })  # fmt: skip


def judge(recipe: Recipe, *args: Any, **options: Any) -> dict[str, Any]:
    """Return the verdict as JSON."""
    return compare_models(recipe, *args, min_gain=recipe.min_gain, **options).to_json()


def lines(seed: int, *, shift: float = 0.0, nll: float = 2.0) -> Lines:
    """Return scores of rows of different lengths, so that the mean over rows differs from the mean over tokens."""
    random, sizes = np.random.default_rng(seed), np.random.default_rng(99)
    rows = []
    for row in range(ROWS):
        tokens = float(sizes.integers(1, 50))
        rows.append({
            "id": str(row), "rougeL": float(np.clip(0.4 + shift + 0.1 * random.standard_normal(), 0, 1)),
            "exact_match": float(random.random() < 0.5 + shift), "tokens": tokens,
            "log_likelihood": -tokens * (nll + 0.002 * tokens + 0.1 * random.standard_normal()),
            "correct": float(sizes.integers(0, int(tokens) + 1)),
        })  # fmt: skip
    return rows


def test_gain_is_better_and_loss_is_not_better() -> None:
    settings = recipe(["rougeL"], "rougeL")
    better = judge(settings, lines(1), lines(2, shift=0.2), groups=GROUPS)
    worse = judge(settings, lines(2, shift=0.2), lines(1), groups=GROUPS)
    assert (better["verdict"], worse["verdict"]) == ("better", "not_better")
    assert better["primary"]["gain"] == pytest.approx(-worse["primary"]["gain"])
    assert better["primary"]["low"] > 0 > worse["primary"]["high"]
    assert judge(settings, lines(1), lines(2), groups=GROUPS)["verdict"] == "cannot_tell"


def test_gain_of_a_lower_is_better_metric_is_the_decrease() -> None:
    name = "mine:words"
    settings = recipe([name, "rougeL"], name, guards=[{"metric": name, "max_drop": 5}])
    long = [{**line, name: 20.0 + row % 7} for row, line in enumerate(lines(1))]
    short = [{**line, name: 10.0 + row % 5} for row, line in enumerate(lines(1))]
    verdict = judge(settings, long, short, groups=GROUPS, lower_is_better=[name])
    assert (verdict["verdict"], verdict["primary"]["higher_is_better"]) == ("better", False)
    assert verdict["primary"]["base"] == pytest.approx(np.mean([line[name] for line in long]))
    assert verdict["primary"]["gain"] == pytest.approx(verdict["primary"]["base"] - verdict["primary"]["tuned"])
    assert verdict["guards"][0]["passed"]
    worse = judge(settings, short, long, groups=GROUPS, lower_is_better=[name])
    assert (worse["verdict"], worse["guards"][0]["passed"]) == ("not_better", False)
    assert judge(settings, long, short, groups=GROUPS)["verdict"] == "not_better"


def test_verdict_has_the_documented_keys() -> None:
    verdict = judge(recipe(["rougeL", "exact_match"], "rougeL"), lines(1), lines(2), groups=GROUPS)
    assert parse_verdict(verdict).to_json() == verdict
    documented = {"metric", "base", "tuned", "gain", "low", "high", "confidence", "rows"}
    assert set(verdict["metrics"]) == {"rougeL", "exact_match"}
    for entry in (verdict["primary"], *verdict["metrics"].values()):
        assert documented <= set(entry)
        assert entry["tuned"] - entry["base"] == pytest.approx(entry["gain"])
        assert entry["low"] <= entry["gain"] <= entry["high"]
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict


def test_groups_of_metrics_are_expanded() -> None:
    all_rouge = [{**line, **dict.fromkeys(("rouge1", "rouge2", "rougeLsum"), 0.5)} for line in lines(1)]
    verdict = judge(recipe(["rouge", "perplexity"], "rougeL"), all_rouge, all_rouge, groups=GROUPS)
    assert list(verdict["metrics"]) == ["rouge1", "rouge2", "rougeL", "rougeLsum", "perplexity"]


def test_gain_in_perplexity_is_the_decrease() -> None:
    settings = recipe(["perplexity"], "perplexity")
    base, tuned = lines(1, nll=2.0), lines(2, nll=1.5)
    verdict = judge(settings, base, tuned, groups=GROUPS)
    primary = verdict["primary"]
    assert verdict["verdict"] == "better"
    assert primary["higher_is_better"] is False

    def perplexity(of: Lines) -> float:
        return math.exp(-sum(line["log_likelihood"] for line in of) / sum(line["tokens"] for line in of))

    assert primary["base"] == pytest.approx(perplexity(base))
    assert primary["tuned"] == pytest.approx(perplexity(tuned))
    assert 0 < primary["tuned"] < primary["base"]
    assert primary["gain"] == pytest.approx(primary["base"] - primary["tuned"])
    assert 0 < primary["low"] < primary["gain"] < primary["high"]
    assert judge(settings, tuned, base, groups=GROUPS)["verdict"] == "not_better"


def test_only_likelihood_metrics_are_weighted_by_tokens() -> None:
    base, tuned = lines(1), lines(2)
    verdict = judge(recipe(["token_accuracy", "rougeL"], "rougeL"), base, tuned, groups=GROUPS)["metrics"]
    tokens = sum(line["tokens"] for line in base)
    assert verdict["token_accuracy"]["base"] == pytest.approx(sum(line["correct"] for line in base) / tokens)
    assert verdict["rougeL"]["base"] == pytest.approx(sum(line["rougeL"] for line in base) / ROWS)
    by_row = sum(line["correct"] / line["tokens"] for line in base) / ROWS
    assert abs(verdict["token_accuracy"]["base"] - by_row) > 0.01


def test_settings_come_from_the_recipe() -> None:
    base, tuned = lines(1), lines(2, shift=0.05)
    half = [str(row // 2) for row in range(ROWS)]
    verdict = judge(recipe(["rougeL"], "rougeL", confidence=0.9, min_gain=0.01), base, tuned, groups=half)
    expected = paired_verdict([line["rougeL"] for line in base], [line["rougeL"] for line in tuned], groups=half,
                            confidence=0.9, min_gain=0.01, seed=5)  # fmt: skip
    assert expected.groups == ROWS // 2
    primary = verdict["primary"]
    assert (primary["low"], primary["high"], primary["confidence"]) == (expected.low, expected.high, 0.9)
    assert (primary["min_gain"], verdict["verdict"]) == (0.01, expected.verdict)


def test_min_gain_applies_only_to_the_primary_metric() -> None:
    base, tuned = lines(1), lines(2, shift=0.2)
    verdict = judge(recipe(["rougeL", "exact_match"], "rougeL", min_gain=0.5), base, tuned, groups=GROUPS)
    assert verdict["verdict"] == "not_better"
    free = judge(recipe(["rougeL", "exact_match"], "exact_match"), base, tuned, groups=GROUPS)
    assert verdict["metrics"]["exact_match"]["low"] == free["metrics"]["exact_match"]["low"]
    assert verdict["primary"]["min_gain"] == 0.5
    assert judge(recipe(["rougeL"], "rougeL"), base, tuned, groups=GROUPS)["primary"]["min_gain"] == 0.0


# --- guards ---


@pytest.mark.parametrize("metric", ["exact_match", "perplexity", "token_accuracy"])
@pytest.mark.parametrize("tuned_nll", [1.5, 2.5])
def test_guard_passes_only_if_the_whole_interval_is_within_max_drop(metric: str, tuned_nll: float) -> None:
    base, tuned = lines(1), lines(2, nll=tuned_nll)
    metrics = ["rougeL", metric]
    low = judge(recipe(metrics, "rougeL"), base, tuned, groups=GROUPS)["metrics"][metric]["low"]

    def guard(max_drop: float) -> dict[str, Any]:
        guards = [{"metric": metric, "max_drop": max_drop}]
        verdict = judge(recipe(metrics, "rougeL", guards=guards), base, tuned, groups=GROUPS)
        [result] = verdict["guards"]
        reasons = [reason for reason in verdict["reasons"] if reason.startswith("guard")]
        assert len(reasons) == (not result["passed"])
        assert all(metric in reason for reason in reasons)
        return dict(result)

    if low < 0:
        assert guard(-low + 1e-9)["passed"] is True
        assert guard(-low - 1e-9)["passed"] is False
        assert guard(-low - 1e-9)["low"] == low
    else:
        assert guard(1e-9)["passed"] is True


def test_guard_fails_if_a_drop_cannot_be_excluded() -> None:
    """Even an unchanged metric fails a guard if there are too few rows to exclude the drop."""
    base = lines(1)
    guards = [{"metric": "exact_match", "max_drop": 0.001}]
    verdict = judge(recipe(["rougeL", "exact_match"], "rougeL", guards=guards), base, base, groups=GROUPS)
    assert verdict["guards"][0]["gain"] == 0
    assert verdict["guards"][0]["passed"] is False
    wide = [{"metric": "exact_match", "max_drop": 0.2}]
    verdict = judge(recipe(["rougeL", "exact_match"], "rougeL", guards=wide), base, base, groups=GROUPS)
    assert verdict["guards"][0]["passed"] is True


def test_guards_do_not_change_the_verdict() -> None:
    guards = [{"metric": "exact_match", "max_drop": 1e-6}]
    verdict = judge(
        recipe(["rougeL", "exact_match"], "rougeL", guards=guards), lines(1), lines(2, shift=0.2), groups=GROUPS
    )
    assert verdict["verdict"] == "better"


# --- reasons ---


def test_reasons_have_the_interval_and_the_rows_needed() -> None:
    settings = recipe(["rougeL"], "rougeL", min_gain=0.01)
    first_reasons = set()
    for shift in (0.2, -0.2, 0.01):
        verdict = judge(settings, lines(1), lines(2, shift=shift), groups=GROUPS)
        interval = f"[{verdict['primary']['low']:+.4f}, {verdict['primary']['high']:+.4f}]"
        assert all(value in verdict["reasons"][0] for value in ("rougeL", interval, "min_gain 0.01"))
        first_reasons.add(verdict["reasons"][0].replace(interval, ""))
        needed = verdict["primary"]["rows_needed"]
        assert any(f"{needed or 0:,} rows" in reason for reason in verdict["reasons"]) == (needed is not None)
    assert len(first_reasons) == 3, "better, not better and cannot tell have different reasons"


def test_scores_that_are_not_finite_are_refused() -> None:
    overflow = [{**line, "log_likelihood": -1e6 * line["tokens"]} for line in lines(1)]
    with raises(DataError, "not-a-number"):
        judge(recipe(["perplexity"], "perplexity"), overflow, lines(1), groups=GROUPS)
    not_finite = [{**line, "rougeL": math.nan} for line in lines(1)]
    with raises(DataError, "not-a-number", where="base[0]"):
        judge(recipe(["rougeL"], "rougeL"), not_finite, lines(1), groups=GROUPS)


# --- groups ---


def test_groups_are_counted_and_the_worst_are_listed() -> None:
    groups = [f"pattern {row % 12}" for row in range(ROWS)]
    base = [{"id": str(row), "exact_match": 0.0} for row in range(ROWS)]
    tuned = [{"id": str(row), "exact_match": float(row % 12 > 2)} for row in range(ROWS)]
    base[0]["exact_match"] = base[12]["exact_match"] = base[1]["exact_match"] = 1.0
    plain = recipe(["exact_match"], "exact_match")
    by_pattern = plain.model_copy(update={"data": plain.data.model_copy(update={"split": Split(by="pattern")})})
    verdict = judge(by_pattern, base, tuned, groups=groups)
    assert (verdict["primary"]["rows"], verdict["primary"]["groups"]) == (60, 12)
    grouping = verdict["grouping"]
    assert {key: grouping[key] for key in ("by", "groups", "rows", "improved", "worsened")} == {
        "by": "pattern", "groups": 12, "rows": 60, "improved": 9, "worsened": 2,
    }  # fmt: skip
    assert [change["group"] for change in grouping["fell"]] == ["pattern 0", "pattern 1"]
    assert grouping["fell"][0] == {
        "group": "pattern 0", "rows": 5, "base": pytest.approx(0.4), "tuned": 0.0, "gain": pytest.approx(-0.4),
    }  # fmt: skip
    low, high = verdict["primary"]["by_row"]["low"], verdict["primary"]["by_row"]["high"]
    assert high - low < verdict["primary"]["high"] - verdict["primary"]["low"]
    ungrouped = judge(plain, base, tuned, groups=GROUPS)
    assert (ungrouped["grouping"], ungrouped["primary"]["low"], ungrouped["primary"]["high"]) == (None, low, high)


def test_worst_groups_in_perplexity_are_those_with_an_increase() -> None:
    groups = [str(row % 10) for row in range(ROWS)]
    base = lines(1)
    tuned = [
        {**line, "log_likelihood": line["log_likelihood"] * (2 if row % 10 == 3 else 0.5)}
        for row, line in enumerate(base)
    ]
    verdict = judge(recipe(["perplexity"], "perplexity"), base, tuned, groups=groups)
    [fell] = verdict["grouping"]["fell"]
    assert fell["group"] == "3"
    assert fell["tuned"] == pytest.approx(fell["base"] ** 2)
    assert fell["gain"] == pytest.approx(fell["base"] - fell["tuned"])
    assert verdict["grouping"]["improved"] == 9


# --- rows that failed ---


def failing(scores: Lines, rows: range) -> Lines:
    """Return scores in which some rows have likelihoods but no answer."""
    likelihoods = {"id", "tokens", "log_likelihood", "correct"}
    return [
        {**{key: value for key, value in line.items() if key in likelihoods}, "failed": "out of memory"}
        if row in rows
        else line
        for row, line in enumerate(scores)
    ]


def test_failed_rows_are_left_out_for_both_models_and_counted() -> None:
    settings = recipe(["rougeL", "perplexity"], "rougeL")
    base, tuned = lines(1), lines(2, shift=0.2)
    verdict = judge(settings, failing(base, range(2)), failing(tuned, range(1, 3)), groups=GROUPS)
    expected = judge(settings, base[3:], tuned[3:], groups=GROUPS[3:])
    assert (verdict["verdict"], verdict["primary"]["failed"]) == ("better", 3)
    assert {**verdict["primary"], "failed": 0} == expected["primary"]
    assert verdict["metrics"]["perplexity"]["rows"] == ROWS  # it needs no answers
    assert any("3 of 60 rows" in reason for reason in verdict["reasons"])


def test_too_many_failed_rows_give_no_verdict() -> None:
    settings = recipe(["rougeL"], "rougeL")
    verdict = judge(settings, failing(lines(1), range(4)), lines(2, shift=0.3), groups=GROUPS)
    assert verdict["primary"]["low"] > 0
    assert (verdict["verdict"], verdict["primary"]["failed"], verdict["primary"]["rows_needed"]) == (
        "cannot_tell",
        4,
        None,
    )
    assert "interval" not in " ".join(verdict["reasons"])
    assert refusal_reasons(verdict)
    guarded = recipe(["rougeL", "perplexity"], "perplexity", guards=[{"metric": "rougeL", "max_drop": 0.5}])
    [guard] = judge(guarded, failing(lines(1), range(4)), lines(2, nll=1.0), groups=GROUPS)["guards"]
    assert guard["passed"] is False


def test_comparing_the_files_of_a_run_gives_the_same_intervals(tmp_path: Path) -> None:
    metrics = ["rougeL", "perplexity", "token_accuracy"]
    groups = [str(row % 20) for row in range(ROWS)]
    base, tuned = failing(lines(1), range(2)), lines(2, shift=0.05, nll=1.9)
    files = []
    for name, scores in (("base", base), ("tuned", tuned)):
        files.append(tmp_path / f"{name}.jsonl")
        write_jsonl(files[-1], [{"group": group, **line} for group, line in zip(groups, scores, strict=True)])
    of_run = judge(recipe(metrics, "rougeL"), base, tuned, groups=groups)["metrics"]
    for name in metrics:
        of_files = compare_files(*files, name, VerdictSettings(0.0, 0.95, 5)).to_json()
        for key in ("base", "tuned", "gain", "low", "high", "rows", "groups", "rows_needed"):
            assert of_files[key] == of_run[name][key], (name, key)


def test_corpus_scores_are_of_the_answers_that_both_models_gave() -> None:
    references = ["the cat sat on the mat", ["a dog runs home", "the dog runs home now"], "red and blue"]

    def answers(*texts: str | None) -> list[dict[str, Any]]:
        pairs = zip(texts, references, strict=True)
        return [{"prediction": t or "", "reference": r, "error": None if t else "too long"} for t, r in pairs]

    base, tuned = answers("a cat sat on it", "dog runs home now", "red and blue"), answers("the cat sat", "a dog", None)
    found = corpus_scores(["rougeL", "bleu", "chrf"], base, tuned)
    assert list(found) == ["bleu", "chrf"]
    kept = [[references[0]], references[1]]
    for name, side in (("base", base), ("tuned", tuned)):
        expected = corpus_bleu([line["prediction"] for line in side[:2]], kept)  # type: ignore[arg-type]
        assert getattr(found["bleu"], name) == expected.value
    assert (found["bleu"].answers, found["bleu"].signature.split("|")[0]) == (2, "nrefs:var")
    assert corpus_scores(["bleu"], answers(None, None, None), tuned) == {}


# --- rows with several samples ---


def write_sampled(folder: Path, seed: int, share: float, samples: int = 4) -> Lines:
    """Score random samples, of which a share is right, as `evaluate` does; the last row fails in one sample."""
    random = np.random.default_rng(seed)
    examples = [Example(str(row), row, str(row), ()) for row in range(ROWS)]
    answers = [
        {"id": str(row), "sample": sample, "reference": "yes", "error": None,
         "prediction": "yes" if random.random() < share else "no"}
        for row in range(ROWS) for sample in range(1, samples + 1)
    ]  # fmt: skip
    answers[-1]["error"] = "out of memory"
    settings = recipe(["exact_match", "rougeL"], "exact_match")
    scorer = Scorer(settings.evaluate.metrics, settings, RunDir(folder, recipe_folder=folder), stage="evaluate")
    return write_scores(folder, examples, (answers, [{}] * ROWS), scorer)


def test_rows_of_samples_have_their_mean_their_values_and_pass_at_k(tmp_path: Path) -> None:
    lines = write_sampled(tmp_path, 1, 0.5)
    assert lines == list(read_jsonl(tmp_path / "scores.jsonl"))
    for line in lines[:-1]:
        values = line["samples"]["exact_match"]
        assert len(values) == 4
        assert line["exact_match"] == sum(values) / 4
        assert line["exact_match@pass4"] == float(any(values))
        assert line["rougeL"] == sum(line["samples"]["rougeL"]) / 4
    assert set(lines[0]) == {
        "id", "group", "samples", "exact_match", "exact_match@pass2", "exact_match@pass4", "rougeL",
    }  # fmt: skip
    assert lines[-1]["failed"]
    assert len(lines[-1]["samples"]["exact_match"]) == 3
    assert "exact_match" not in lines[-1]


def test_one_answer_per_row_is_scored_as_before(tmp_path: Path) -> None:
    lines = write_sampled(tmp_path, 1, 0.5, samples=1)
    assert set(lines[0]) == {"id", "group", "exact_match", "rougeL"}
    assert lines[-1] == {"id": str(ROWS - 1), "group": str(ROWS - 1), "failed": "out of memory"}


def test_the_verdict_has_mean_and_pass_at_k_with_paired_intervals(tmp_path: Path) -> None:
    sampled = {"samples": 4, "sampling": {"temperature": 1}}
    settings = recipe(["exact_match", "rougeL"], "exact_match", **sampled)
    base, tuned = write_sampled(tmp_path / "base", 1, 0.3), write_sampled(tmp_path / "tuned", 2, 0.6)
    found = compare_models(settings, base, tuned, groups=GROUPS, min_gain=0.0)
    assert list(found.metrics) == ["exact_match", "exact_match@pass2", "exact_match@pass4", "rougeL"]
    assert (found.primary.metric, found.primary.verdict, found.primary.failed) == ("exact_match", "better", 1)
    passed = found.metrics["exact_match@pass4"]
    assert passed.tuned == pytest.approx(np.mean([line["exact_match@pass4"] for line in tuned[:-1]]))
    assert passed.base < passed.tuned <= 1
    assert passed.low <= passed.gain <= passed.high
    assert any("mean@4" in reason for reason in found.reasons)
    assert parse_verdict(found.to_json()).to_json() == found.to_json()
    files = tmp_path / "base" / "scores.jsonl", tmp_path / "tuned" / "scores.jsonl"
    compared = compare_files(*files, "exact_match@pass4", VerdictSettings(0.0, 0.95, 5)).comparison
    assert (compared.base, compared.tuned, compared.failed) == (passed.base, passed.tuned, 1)
