"""What the rungs show together: of each its measures, and score and gain in intervals that hold for all at once."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST, read_json, read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.evaluate.compare import judged
from tunesmith.ladder.rungs import Axis, Ladder, Rung, correction
from tunesmith.ladder.share import taken_over
from tunesmith.recipe.schema import FullTuning, Recipe
from tunesmith.scoring.custom import is_own
from tunesmith.scoring.metrics import higher_is_better, is_share, share_hint
from tunesmith.scoring.verdict import Verdict

State = Literal["done", "failed", "to do"]
Standing = Literal["clears", "falls short", "cannot tell", "breaks a guard"]
_STANDINGS: dict[str, Standing] = {"better": "clears", "not_better": "falls short", "cannot_tell": "cannot tell"}


@dataclass(frozen=True, slots=True)
class Bar:
    """What a rung must clear: a tuned `score`, or a `gain` over the base."""

    on: Literal["score", "gain"]
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and the interval around it, in the unit of the metric; `low` is never above `high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rung: how far it is, what it took (`measures`) and how it did. `standing` is None without a score.

    `measures` are model_parameters, trained_parameters, train_rows, tokens, seconds, memory_gib, tokens_per_second.
    """

    number: int
    label: str
    folder: str
    changes: tuple[str, ...]
    state: State
    failure: dict[str, Any] | None
    shared: dict[str, str]
    measures: dict[str, float]
    base: float | None
    score: Estimate | None
    gain: Estimate | None
    standing: Standing | None

    def judged(self, bar: Bar) -> Estimate | None:
        """Return what the bar is held against."""
        return self.score if bar.on == "score" else self.gain


@dataclass(frozen=True, slots=True)
class Result:
    """What a ladder shows. Intervals are at `each_confidence`, so that all of them hold at `confidence` together."""

    name: str
    path: Path
    axes: tuple[Axis, ...]
    bar: Bar
    higher_is_better: bool
    confidence: float
    each_confidence: float
    rows: int | None
    outcomes: tuple[Outcome, ...]
    smallest: Outcome | None
    promotes: bool
    notes: tuple[str, ...]

    @property
    def file(self) -> Path:
        """Where the result is kept."""
        return self.path / "ladder.json"

    @property
    def page(self) -> Path:
        """Where the result is drawn for people."""
        return self.path / "ladder.html"

    @property
    def promote_command(self) -> str | None:
        """How to promote the smallest rung by hand, where the recipe says as what."""
        if self.smallest is None or not self.promotes:
            return None
        return f"tunesmith promote {quote(str(self.path / self.smallest.folder))}"

    def to_json(self) -> dict[str, Any]:
        """Return the result as `ladder.json` holds it; rungs are named by number, and no path is absolute."""
        return {
            "name": self.name,
            "axes": [{**asdict(axis), "measure": axis.measure} for axis in self.axes],
            "bar": asdict(self.bar),
            "higher_is_better": self.higher_is_better,
            "confidence": self.confidence,
            "each_confidence": self.each_confidence,
            "correction": f"Bonferroni over {len(self.outcomes)} rungs",
            "rows": self.rows,
            "smallest": self.smallest.number if self.smallest else None,
            "rungs": [asdict(outcome) for outcome in self.outcomes],
            "notes": list(self.notes),
        }


def check_bar(recipe: Recipe, bar: float | None) -> None:
    """Raise RecipeError if no score, or every score, of the recipe's metric would clear the bar."""
    metric = recipe.evaluate.primary
    if bar is not None and is_share(metric) and not 0 <= bar < 1:
        raise RecipeError(f"is beyond what a score can be: {share_hint(metric, bar)}", where="--bar")


def collect(ladder: Ladder, bar: float | None = None) -> Result:
    """Read all rungs, finished or not, and choose the smallest that clears the bar.

    Args:
        bar: what the tuned score must clear; default: the gain must clear `promote.min_gain`.
    """
    recipes = [ladder.recipe(rung) for rung in ladder.rungs]
    recipe = recipes[0]
    metric = recipe.evaluate.primary
    up = _higher_is_better(ladder, metric)
    least = recipe.promote.min_gain if recipe.promote else 0.0
    held = Bar("gain", metric, least) if bar is None else Bar("score", metric, bar)
    outcomes = tuple(_outcome(ladder, rung, one, held) for rung, one in zip(ladder.rungs, recipes, strict=True))
    asked = {tuple(_ids(ladder.run(rung))) for rung, found in zip(ladder.rungs, outcomes, strict=True) if found.score}
    return Result(
        name=recipe.name,
        path=ladder.path,
        axes=ladder.axes,
        bar=held,
        higher_is_better=up,
        confidence=recipe.evaluate.confidence,
        each_confidence=correction(recipe.evaluate.confidence, len(ladder.rungs)),
        rows=min((len(ids) for ids in asked), default=None),
        outcomes=outcomes,
        smallest=smallest(outcomes, ladder.axes, higher_is_better=up),
        promotes=recipe.promote is not None,
        notes=tuple(_notes(ladder, recipes, held, outcomes, len(asked))),
    )


def smallest(outcomes: Sequence[Outcome], axes: Sequence[Axis], *, higher_is_better: bool) -> Outcome | None:
    """Return the smallest rung that clears the bar, or None.

    Smallest in what the first axis makes small (parameters of the model, trained parameters, training rows, tokens
    trained on); rungs equal in that by the second axis, and so on; rungs equal in all by the better score.
    Each interval excludes the bar with the error that `correction` leaves it, so the choice among them needs no more.
    """

    def order(outcome: Outcome) -> tuple[float, ...]:
        score = outcome.score.value if outcome.score else 0.0
        worse = -score if higher_is_better else score
        return (*(outcome.measures[axis.measure] for axis in axes), worse, outcome.number)

    return min((outcome for outcome in outcomes if outcome.standing == "clears"), key=order, default=None)


def failure_path(run: RunDir) -> Path:
    """Return where a rung that failed says why."""
    return run.path / "logs" / "failure.json"


def failure_of(run: RunDir) -> dict[str, Any] | None:
    """Return {exit_code, reason} of a rung that failed, else None; one that was finished since has not."""
    path, finished = failure_path(run), run.stage("evaluate") / MANIFEST
    if not path.exists() or (finished.exists() and finished.stat().st_mtime_ns > path.stat().st_mtime_ns):
        return None
    return dict(read_json(path))


def _higher_is_better(ladder: Ladder, metric: str) -> bool:
    """Return what the first verdict there is says of a metric; before that, what is known without one."""
    runs = (run for rung in ladder.rungs if (run := ladder.run(rung)).manifest("evaluate"))
    first = next(runs, None)
    if first is None:
        return higher_is_better(metric) is not False
    return bool(read_json(first.verdict)["metrics"][metric]["higher_is_better"])


def _outcome(ladder: Ladder, rung: Rung, recipe: Recipe, bar: Bar) -> Outcome:
    run = ladder.run(rung)
    failure = failure_of(run)
    done = run.manifest("evaluate") is not None and failure is None
    found = None
    if done:
        sealed = (run.stage("evaluate") / MANIFEST).stat().st_mtime_ns
        each = correction(recipe.evaluate.confidence, len(ladder.rungs))
        found = _judged(run.path, sealed, recipe.model_dump_json(), bar, each)
    return Outcome(
        number=rung.number,
        label=rung.label,
        folder=rung.folder,
        changes=rung.changes,
        state="failed" if failure else "done" if done else "to do",
        failure=failure,
        shared=taken_over(run),
        measures=_measures(run, recipe),
        base=found[0] if found else None,
        score=found[1] if found else None,
        gain=found[2] if found else None,
        standing=found[3] if found else None,
    )


def _measures(run: RunDir, recipe: Recipe) -> dict[str, float]:
    """Return what a rung took, as far as it came."""
    prepared, trained = run.manifest("prepare"), run.manifest("train")
    found: dict[str, float] = {}
    if prepared:
        found["train_rows"] = prepared["counts"]["train"]
    if trained:
        added = 0 if isinstance(recipe.tuning, FullTuning) else trained["trainable_parameters"]
        found |= {
            "model_parameters": trained["all_parameters"] - added,
            "trained_parameters": trained["trainable_parameters"],
            "tokens": trained["tokens"],
            "seconds": trained["seconds"],
            "memory_gib": trained["peak_memory_gib"],
            "tokens_per_second": trained["tokens_per_second"],
        }
    return found


@lru_cache(maxsize=1024)  # a ladder is collected after every rung, and resampling takes seconds where rows are many
def _judged(path: Path, sealed: int, text: str, bar: Bar, each: float) -> tuple[float, Estimate, Estimate, Standing]:
    """Return (the base's score, the tuned score, the gain, how the rung stands to the bar).

    `sealed` is when the evaluation was finished, so that one that was repeated is judged anew; `text` is the recipe as
    JSON, since what is remembered must be hashable.
    """
    run, recipe = RunDir(path), Recipe.model_validate_json(text)
    strict = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"confidence": each})})
    base, tuned = (list(read_jsonl(run.subject(name) / "scores.jsonl")) for name in ("base", "tuned"))
    groups = [line["group"] for line in tuned]
    verdict = read_json(run.verdict)
    # A score alone is a gain over a model that scores nothing in every row: 0, or a perplexity of 1.
    nowhere = 1.0 if bar.metric == "perplexity" else 0.0
    kept = ("id", "group", "tokens", "failed")
    nothing = [{key: value if key in kept else 0.0 for key, value in line.items()} for line in tuned]
    lower = not verdict["metrics"][bar.metric]["higher_is_better"]
    wanted = bar.value if bar.on == "gain" else nowhere - bar.value if lower else bar.value
    gain, score = (
        judged(
            strict, bar.metric, before, tuned, groups=groups, min_gain=wanted if bar.on == kind else 0.0,
            lower_is_better=lower,
        )
        for kind, before in (("gain", base), ("score", nothing))
    )  # fmt: skip
    standing = _STANDINGS[(gain if bar.on == "gain" else score).verdict]
    if standing == "clears" and not all(guard["passed"] for guard in verdict["guards"]):
        standing = "breaks a guard"
    return (
        -gain.base if lower else gain.base,
        _score(score, nowhere, lower=lower, least=-math.inf if is_own(bar.metric) else nowhere),
        Estimate(gain.gain, gain.low, gain.high),
        standing,
    )


def _score(found: Verdict, nowhere: float, *, lower: bool, least: float) -> Estimate:
    """Return the score whose gain over `nowhere` was found; no score of the metric is below `least`."""
    if lower:
        return Estimate(nowhere - found.gain, max(least, nowhere - found.high), nowhere - found.low)
    return Estimate(found.gain, max(least, found.low), found.high)


def _ids(run: RunDir) -> list[str]:
    return [line["id"] for line in read_jsonl(run.subject("tuned") / "scores.jsonl")]


def _notes(
    ladder: Ladder, recipes: Sequence[Recipe], bar: Bar, outcomes: Sequence[Outcome], questions: int
) -> list[str]:
    """Return what a reader has to know before believing the choice."""
    notes = []
    if questions > 1:
        notes.append(
            "The rungs did not answer the same rows, so their scores differ by their questions too; an axis that "
            "moves rows between the splits, such as the seed, does that."
        )
    if bar.on == "gain" and len({recipe.model.base for recipe in recipes}) > 1:
        notes.append(
            "The bar is on the gain, and every model gains over itself: a weak one has more to gain. "
            "--bar holds the scores themselves against one number."
        )
    sizes = {tuple(outcome.measures[axis.measure] for axis in ladder.axes) for outcome in outcomes if outcome.score}
    if len(sizes) == 1 and sum(outcome.score is not None for outcome in outcomes) > 1:
        notes.append("No axis makes a rung smaller; of those that clear the bar the one that did best is named.")
    return notes
