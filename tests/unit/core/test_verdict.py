"""The verdict record: values derived from its numbers, and the strict reader of verdict.json."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.verdicts import comparison, of_seeds, verdict, with_set

from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import write_json
from tunesmith.core.verdict import CorpusScores, GroupChange, Grouping
from tunesmith.core.verdict_reader import parse_verdict, read_verdict

GROUPING = Grouping("pattern", 40, 200, 30, 4, (GroupChange("sum", 5, 0.6, 0.2, -0.4),))
WITHOUT_SET = verdict(
    comparison(groups=40, min_gain=0.01, by_row=(0.03, 0.07), failed=3),
    comparison("exact_match", base=0.5, tuned=0.5, gain=0.0, low=-0.005, high=0.005, rows=201),
    comparison("perplexity", base=9.0, tuned=7.0, gain=2.0, low=1.0, high=3.0, rows=203, higher_is_better=False),
    guards=[("exact_match", 0.01), ("perplexity", 0.5)],
    grouping=GROUPING,
    reasons=["the interval lies above 0.01"],
    health={"base": {"rows": 203, "failed": 3}, "tuned": {"rows": 203, "failed": 0}},
    digests={"questions": "aa", "base": "bb", "tuned": "cc"},
    conditions={"precision": "fp32", "quantization": None},
)
ACCURACY = comparison("token_accuracy", gain=0.0, low=-0.01, high=0.01, tuned=0.4, rows=98, failed=2)
WHOLE = with_set(WITHOUT_SET, "general", ACCURACY, 0.02, comparison("perplexity", rows=100)).to_json()
NUMBERS = ("base", "tuned", "gain", "low", "high", "confidence", "rows")


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the whole verdict with one value changed; `path` is like "primary.low"; `...` removes the value."""
    stored = copy.deepcopy(WHOLE)
    *folders, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    at: Any = stored
    for key in folders:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return stored


@pytest.mark.parametrize(
    ("low", "high", "min_gain", "failed", "outcome"),
    [
        (0.02, 0.08, 0.0, 0, "better"),
        (0.02, 0.08, 0.02, 0, "cannot_tell"),
        (0.02, 0.08, 0.08, 0, "not_better"),
        (-0.05, 0.08, -0.1, 0, "better"),
        (0.02, 0.08, 0.0, 10, "better"),
        (0.02, 0.08, 0.0, 11, "cannot_tell"),
        (0.02, 0.08, 0.1, 11, "cannot_tell"),
    ],
)
def test_verdict_follows_from_interval_and_failed_rows(
    low: float, high: float, min_gain: float, failed: int, outcome: str
) -> None:
    assert comparison(low=low, high=high, min_gain=min_gain, failed=failed).verdict == outcome


@pytest.mark.parametrize(
    ("low", "failed", "passed"), [(-0.01, 0, True), (-0.0101, 0, False), (0.02, 11, False), (0.02, 10, True)]
)
def test_guard_passes_if_the_interval_excludes_a_larger_drop(low: float, failed: int, passed: bool) -> None:
    [guard] = verdict(comparison(low=low, failed=failed), guards=[("rougeL", 0.01)]).guards
    assert guard.passed is passed


def test_verdict_survives_json(tmp_path: Path) -> None:
    write_json(tmp_path / "verdict.json", WHOLE)
    found = read_verdict(tmp_path / "verdict.json")
    assert json.dumps(found.to_json()) == json.dumps(WHOLE)
    assert found.primary is found.metrics["rougeL"]
    assert [one.failed for one in found.metrics.values()] == [3, 2, 0]
    assert found.grouping == GROUPING
    assert [guard.passed for guard in found.guards] == [True, True, True]
    assert [guard.name for guard in found.guards] == ["exact_match", "perplexity", "token_accuracy on general"]
    assert [one.failed for one in found.also["general"].metrics.values()] == [2, 0]


def test_verdict_without_further_sets_has_the_keys_of_earlier_versions() -> None:
    stored = WITHOUT_SET.to_json()
    assert "also" not in stored
    assert all("set" not in guard for guard in stored["guards"])
    assert parse_verdict(stored).to_json() == stored


def test_corpus_scores_are_stored_if_there_are_any() -> None:
    scores = {"bleu": CorpusScores(0.1656, 0.2, 359, "nrefs:3|tok:13a")}
    stored = json.loads(json.dumps(verdict(corpus=scores).to_json()))
    assert stored["corpus"] == {"bleu": {"base": 0.1656, "tuned": 0.2, "answers": 359, "signature": "nrefs:3|tok:13a"}}
    assert parse_verdict(stored).corpus == scores
    assert "corpus" not in verdict().to_json(), "as earlier versions wrote it"
    stored["corpus"]["bleu"]["base"] = "16.6"
    with raises(DamagedFile, "damaged-verdict", "corpus.bleu.base"):
        parse_verdict(stored)


def test_fields_of_later_versions_are_ignored() -> None:
    assert parse_verdict({**WHOLE, "more": 1}).to_json() == WHOLE


DAMAGED = {
    "not an object": ["better"],
    "empty": {},
    **{f"{key} is missing": changed(key, ...) for key in WHOLE},
    **{f"{key} is null": changed(key, None) for key in WHOLE if key != "grouping"},
    "another word": changed("verdict", "BETTER"),
    "a word that the interval contradicts": changed("verdict", "not_better"),
    **{f"primary.{key} is missing": changed(f"primary.{key}", ...) for key in WHOLE["primary"] if key != "by_row"},
    **{f"primary.{key} is NaN": changed(f"primary.{key}", math.nan) for key in WHOLE["primary"]},
    **{f"primary.{key} is infinite": changed(f"primary.{key}", math.inf) for key in NUMBERS},
    **{f"primary.{key} is text": changed(f"primary.{key}", "0.05") for key in NUMBERS},
    **{f"primary.{key} is true": changed(f"primary.{key}", True) for key in NUMBERS},
    "an integer beyond floats": changed("primary.high", 10**400),
    "no rows": changed("primary.rows", 0),
    "half a row": changed("primary.rows", 1.5),
    "gain outside its interval": changed("primary.gain", 0.09),
    "better at min_gain": changed("primary.min_gain", 0.02),
    "more groups than rows": changed("primary.groups", 201),
    "primary differs from its metric": changed("metrics.rougeL.tuned", 0.46),
    "a metric under another name": changed("metrics.exact_match.metric", "bleu"),
    "a metric on more rows than there are": changed("metrics.exact_match.rows", 204),
    "primary is not among the metrics": changed("metrics.rougeL", ...),
    "higher_is_better is a number": changed("metrics.perplexity.higher_is_better", 0),
    "guard of an unknown metric": changed("guards.0.metric", "bleu"),
    "guard that did not pass": changed("guards.0.passed", False),
    "guard passed by text": changed("guards.0.passed", "true"),
    "guard passed by one": changed("guards.0.passed", 1),
    "guard with another gain": changed("guards.0.gain", 0.004),
    "guard without a limit": changed("guards.0.max_drop", ...),
    "guard is a word": changed("guards.0", "passed"),
    "guard of an unknown set": changed("guards.2.set", "other"),
    "guard of a set that did not pass": changed("guards.2.passed", False),
    "guard of a set on another metric": changed("guards.2.metric", "exact_match"),
    "set without its guard": changed("guards", WHOLE["guards"][:2]),
    "set on more rows than it has": changed("also.general.rows", 97),
    "set without its metric": changed("also.general.metrics.token_accuracy", ...),
    "set whose gain is outside its interval": changed("also.general.metrics.perplexity.gain", 0.09),
    "set that failed too often": changed("also.general.rows", 120),
    "a reason that is no text": changed("reasons", [1]),
    "groups of half a row": changed("grouping.groups", 1.5),
    "a change of no group": changed("grouping.fell.0.group", None),
}


@pytest.mark.parametrize("stored", DAMAGED.values(), ids=DAMAGED.keys())
def test_incomplete_or_contradictory_verdict_is_damaged(stored: Any) -> None:
    with raises(DamagedFile, "damaged-verdict", where="verdict.json"):
        parse_verdict(stored, where="verdict.json")


def test_error_names_the_field_and_the_contradiction() -> None:
    with raises(DamagedFile, "damaged-verdict", "primary.low", "nan"):
        parse_verdict(changed("primary.low", math.nan))
    with raises(DamagedFile, "damaged-verdict", "verdict", "not_better", "'better'"):
        parse_verdict(changed("verdict", "not_better"))


def test_seeds_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = verdict(of_seeds(0.01, 0.02, 0.03, seeds_needed=9, low=-0.01), guards=[("rougeL", 0.2)])
    write_json(tmp_path / "verdict.json", found.to_json())
    read = read_verdict(tmp_path / "verdict.json")
    assert read == found
    assert read.primary.own == found.primary.seeds[0]
    assert not {"seeds", "seeds_needed"} & verdict().to_json()["primary"].keys()


def test_a_seed_with_a_gain_outside_its_interval_is_damaged() -> None:
    stored = verdict(of_seeds(0.01, 0.02, 0.03)).to_json()
    stored["primary"]["seeds"][1]["low"] = 0.07
    with raises(DamagedFile, "damaged-verdict"):
        parse_verdict(stored)


def test_a_guard_needs_the_run_s_own_model_as_well() -> None:
    assert verdict(of_seeds(-0.01, -0.5, 0.0), guards=[("rougeL", 0.1)]).guards[0].passed
    assert not verdict(of_seeds(-0.2, 0.0, 0.0), guards=[("rougeL", 0.1)]).guards[0].passed
