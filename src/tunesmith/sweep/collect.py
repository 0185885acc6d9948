"""Collect the measures, scores and gains of all trials, with intervals that hold for all of them at once."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST, read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Comparison
from tunesmith.core.verdict_reader import read_verdict
from tunesmith.evaluate.replicates import read_tuned_scores
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import FullTuning
from tunesmith.scoring.custom import is_custom
from tunesmith.scoring.metrics import find_metric, higher_is_better, is_share, share_hint
from tunesmith.scoring.row_scores import VerdictSettings, compare
from tunesmith.scoring.verdict import corrected_confidence
from tunesmith.sweep.axes import Axis, Sweep, Trial
from tunesmith.sweep.reuse import reused

State = Literal["done", "failed", "to do"]
Outcome = Literal["clears", "falls short", "cannot tell", "breaks a guard"]
_OUTCOMES: dict[str, Outcome] = {"better": "clears", "not_better": "falls short", "cannot_tell": "cannot tell"}


@dataclass(frozen=True, slots=True)
class Threshold:
    """What a trial must exceed: a tuned score, or a gain over the base."""

    quantity: Literal["score", "gain"]
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval, in the unit of the metric, `low` <= `high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The state, cost (`measures`) and scores of one trial. `outcome` is None without a score.

    Keys of `measures`: model_parameters, trained_parameters, train_rows, tokens, seconds, memory_gib,
    tokens_per_second.
    """

    number: int
    label: str
    folder: str
    changes: tuple[str, ...]
    state: State
    failure: dict[str, Any] | None
    reused: dict[str, str]
    measures: dict[str, float]
    base: float | None
    score: Estimate | None
    gain: Estimate | None
    outcome: Outcome | None

    def estimate(self, threshold: Threshold) -> Estimate | None:
        """Return the score or the gain, whichever the threshold applies to."""
        return self.score if threshold.quantity == "score" else self.gain


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The result of a sweep. Each interval is at `each_confidence`, so that together they hold at `confidence`."""

    name: str
    path: Path
    axes: tuple[Axis, ...]
    threshold: Threshold
    higher_is_better: bool
    confidence: float
    each_confidence: float
    rows: int | None
    trials: tuple[TrialResult, ...]
    smallest: TrialResult | None
    promotes: bool
    notes: tuple[str, ...]

    @property
    def file(self) -> Path:
        """File of the result."""
        return self.path / "sweep.json"

    @property
    def page(self) -> Path:
        """HTML page of the result."""
        return self.path / "sweep.html"

    @property
    def promote_command(self) -> str | None:
        """The command that promotes the smallest trial, if the recipe has a `promote` section."""
        if self.smallest is None or not self.promotes:
            return None
        return f"tunesmith promote {quote(str(self.path / self.smallest.folder))}"

    def to_json(self) -> dict[str, Any]:
        """Return the content of `sweep.json`. Trials are referred to by number, and no path is absolute."""
        return {
            "name": self.name,
            "axes": [{**asdict(axis), "measure": axis.measure} for axis in self.axes],
            "threshold": asdict(self.threshold),
            "higher_is_better": self.higher_is_better,
            "confidence": self.confidence,
            "each_confidence": self.each_confidence,
            "correction": f"Bonferroni over {len(self.trials)} trials",
            "rows": self.rows,
            "smallest": self.smallest.number if self.smallest else None,
            "trials": [asdict(trial) for trial in self.trials],
            "notes": list(self.notes),
        }


def check_threshold(recipe: Recipe, threshold: float | None) -> None:
    """Raise RecipeError if the threshold is outside the range of the recipe's primary metric."""
    metric = recipe.evaluate.primary
    if threshold is not None and is_share(metric) and not 0 <= threshold < 1:
        message, hint = "is outside the range of scores", share_hint(metric, threshold)
        raise RecipeError(message, where="--threshold", hint=hint, code="unreachable-threshold")


def collect(sweep: Sweep, score: float | None = None) -> SweepResult:
    """Read all trials, finished or not, and choose the smallest that clears the threshold.

    Args:
        score: score that a trial must exceed; default: its gain must exceed `promote.min_gain`.
    """
    recipes = [sweep.recipe(trial) for trial in sweep.trials]
    recipe = recipes[0]
    metric = recipe.evaluate.primary
    up = _higher_is_better(sweep, metric)
    min_gain = recipe.min_gain
    threshold = Threshold("gain", metric, min_gain) if score is None else Threshold("score", metric, score)
    trials = tuple(_trial_result(sweep, *pair, threshold) for pair in zip(sweep.trials, recipes, strict=True))
    row_sets = {_row_ids(RunDir(sweep.path / trial.folder)) for trial in trials if trial.score}
    return SweepResult(
        name=recipe.name,
        path=sweep.path,
        axes=sweep.axes,
        threshold=threshold,
        higher_is_better=up,
        confidence=recipe.evaluate.confidence,
        each_confidence=corrected_confidence(recipe.evaluate.confidence, len(sweep.trials)),
        rows=min((len(ids) for ids in row_sets), default=None),
        trials=trials,
        smallest=smallest(trials, sweep.axes, higher_is_better=up),
        promotes=recipe.promote is not None,
        notes=tuple(_notes(sweep, recipes, threshold, trials, len(row_sets))),
    )


def smallest(trials: Sequence[TrialResult], axes: Sequence[Axis], *, higher_is_better: bool) -> TrialResult | None:
    """Return the smallest trial that clears the threshold, or None.

    Trials are ordered by the measure of the first axis (model parameters, trained parameters, training rows, tokens),
    then by that of the second, and so on; trials equal in all measures by score. The intervals are corrected for the
    number of trials, so choosing one of those that clear the threshold needs no further correction.
    """

    def order(trial: TrialResult) -> tuple[float, ...]:
        score = trial.score.value if trial.score else 0.0
        worse = -score if higher_is_better else score
        return (*(trial.measures[axis.measure] for axis in axes), worse, trial.number)

    return min((trial for trial in trials if trial.outcome == "clears"), key=order, default=None)


def failure_path(run: RunDir) -> Path:
    """Return the file with the reason why a trial failed."""
    return run.path / "logs" / "failure.json"


def failure_of(run: RunDir) -> dict[str, Any] | None:
    """Return {exit_code, reason} if the trial failed and was not finished since, else None."""
    path, finished = failure_path(run), run.stage("evaluate") / MANIFEST
    if not path.exists() or (finished.exists() and finished.stat().st_mtime_ns > path.stat().st_mtime_ns):
        return None
    return dict(read_json(path))


def _higher_is_better(sweep: Sweep, metric: str) -> bool:
    """Return the metric's direction from the first verdict; without one, from the metric's name."""
    for run in map(sweep.run, sweep.trials):
        if run.manifest("evaluate"):
            return read_verdict(run.verdict).metrics[metric].higher_is_better
    return higher_is_better(metric) is not False


def _trial_result(sweep: Sweep, trial: Trial, recipe: Recipe, threshold: Threshold) -> TrialResult:
    run = sweep.run(trial)
    failure = failure_of(run)
    state: State = "failed" if failure else "done" if run.manifest("evaluate") is not None else "to do"
    base = score = gain = outcome = None
    if state == "done":
        sealed = (run.stage("evaluate") / MANIFEST).stat().st_mtime_ns
        each = corrected_confidence(recipe.evaluate.confidence, len(sweep.trials))
        base, score, gain, outcome = _scores_and_outcome(run.path, sealed, threshold, each, recipe.seed)
    return TrialResult(
        trial.number, trial.label, trial.folder, trial.changes, state, failure, reused=reused(run),
        measures=_measures(run, recipe), base=base, score=score, gain=gain, outcome=outcome,
    )  # fmt: skip


def _measures(run: RunDir, recipe: Recipe) -> dict[str, float]:
    """Return the measures of the stages that a trial has finished."""
    prepared, trained = run.manifest("prepare"), run.manifest("train")
    measures: dict[str, float] = {}
    if prepared:
        measures["train_rows"] = prepared["counts"]["train"]
    if trained:
        added = 0 if isinstance(recipe.tuning, FullTuning) else trained["trainable_parameters"]
        measures |= {
            "model_parameters": trained["all_parameters"] - added,
            "trained_parameters": trained["trainable_parameters"],
            "tokens": trained["tokens"],
            "seconds": trained["seconds"],
            "memory_gib": trained["peak_memory_gib"],
            "tokens_per_second": trained["tokens_per_second"],
        }
    return measures


@lru_cache(maxsize=1024)  # collected after each trial, and resampling many rows takes seconds
def _scores_and_outcome(
    path: Path, sealed: int, threshold: Threshold, each: float, seed: int
) -> tuple[float, Estimate, Estimate, Outcome]:
    """Return (the base's score, the tuned score, the gain, the outcome).

    `sealed` is the time at which the evaluation was finished, so that a repeated one is not answered from the cache.
    """
    run = RunDir(path)
    base = list(read_jsonl(run.evaluation("base") / "scores.jsonl"))
    tuned, by_seed = read_tuned_scores(load_recipe(run.resolved_recipe), run)
    groups = [line["group"] for line in tuned]
    verdict = read_verdict(run.verdict)
    # A threshold on the score is a gain over a constant: 0, or for perplexity its minimum of 1.
    origin = known.value_at_zero if (known := find_metric(threshold.metric)) else 0.0
    not_scores = ("id", "group", "tokens", "failed", "samples")
    zeros = [{key: value if key in not_scores else 0.0 for key, value in line.items()} for line in tuned]
    lower = not verdict.metrics[threshold.metric].higher_is_better
    is_gain = threshold.quantity == "gain"
    min_gain = origin - threshold.value if lower and not is_gain else threshold.value
    gain, score = (
        compare(
            threshold.metric, before, tuned, groups=groups, lower_is_better=lower, by_seed=by_seed,
            settings=VerdictSettings(min_gain if threshold.quantity == kind else 0.0, each, seed),
        )
        for kind, before in (("gain", base), ("score", zeros))
    )  # fmt: skip
    outcome = _OUTCOMES[(gain if is_gain else score).verdict]
    if outcome == "clears" and not all(guard.passed for guard in verdict.guards):
        outcome = "breaks a guard"
    return (
        gain.base,
        score_estimate(score, origin, lower=lower, least=-math.inf if is_custom(threshold.metric) else origin),
        Estimate(gain.gain, gain.low, gain.high),
        outcome,
    )


def score_estimate(comparison: Comparison, origin: float, *, lower: bool, least: float) -> Estimate:
    """Return the score whose gain over `origin` was measured, with an interval that does not go below `least`."""
    if lower:
        return Estimate(origin - comparison.gain, max(least, origin - comparison.high), origin - comparison.low)
    return Estimate(comparison.gain, max(least, comparison.low), comparison.high)


def _row_ids(run: RunDir) -> tuple[str, ...]:
    return tuple(line["id"] for line in read_jsonl(run.evaluation("tuned") / "scores.jsonl"))


def _notes(
    sweep: Sweep, recipes: Sequence[Recipe], threshold: Threshold, trials: Sequence[TrialResult], row_sets: int
) -> list[str]:
    """Return the caveats of the choice."""
    notes = []
    if row_sets > 1:
        notes.append(
            "The trials were evaluated on different test rows, so part of the differences comes from the rows. An axis "
            "that moves rows between splits, such as the seed, causes this."
        )
    if threshold.quantity == "gain" and len({recipe.model.base for recipe in recipes}) > 1:
        notes.append(
            "The threshold is on the gain over each trial's own base, and a weak base leaves more to gain. "
            "--threshold compares the scores with one number instead."
        )
    sizes = {tuple(trial.measures[axis.measure] for axis in sweep.axes) for trial in trials if trial.score}
    if len(sizes) == 1 and sum(trial.score is not None for trial in trials) > 1:
        notes.append("The trials have equal sizes, so the one with the best score is named.")
    return notes
