"""Estimate the parameters, tokens, memory and training time of each trial without running any."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, DoesNotFit
from tunesmith.core.progress import format_duration
from tunesmith.plan.run_plan import plan_run
from tunesmith.sweep.axes import Sweep, Trial


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """The estimate for one trial, sizes in GiB. If it cannot start, `problem` has the reason and the rest is None."""

    number: int
    label: str
    folder: str
    state: str
    problem: str | None = None
    trained_parameters: int | None = None
    train_rows: int | None = None
    tokens: int | None = None
    memory_gib: float | None = None
    seconds: float | None = None


def plan_sweep(sweep: Sweep, recipe: Path) -> list[PlannedTrial]:
    """Estimate each trial.

    Args:
        recipe: the recipe's file, or the sweep's folder.

    Raises:
        RecipeError: a base cannot be found or fetched.
    """
    return [_planned(sweep, trial, recipe) for trial in sweep.trials]


def _planned(sweep: Sweep, trial: Trial, recipe: Path) -> PlannedTrial:
    run = sweep.run(trial)
    state = "done" if run.manifest("evaluate") else "to do"
    try:
        if run.resolved_recipe.exists():
            plan = plan_run(run.path)
        else:
            plan = plan_run(recipe, [*sweep.overrides, *trial.changes], out=run.path)
        plan.require_fit()
    except (DataError, DoesNotFit) as error:
        return PlannedTrial(trial.number, trial.label, trial.folder, state, problem=error.message)
    return PlannedTrial(
        trial.number, trial.label, trial.folder, state,
        trained_parameters=plan.cluster.memory.trainable_parameters, train_rows=plan.rows.counts["train"],
        tokens=plan.training_tokens, memory_gib=round(plan.cluster.memory.total, 2),
        seconds=plan.seconds[0] if plan.seconds else None,
    )  # fmt: skip


def plan_json(sweep: Sweep, planned: list[PlannedTrial]) -> dict[str, Any]:
    """Return the plan as JSON."""
    return {"sweep": str(sweep.path), "trials": [asdict(trial) for trial in planned], "seconds": _total(planned)}


def plan_text(sweep: Sweep, planned: list[PlannedTrial]) -> str:
    """Return the plan for a terminal."""
    lines = [f"sweep    {sweep.path}"]
    for trial in planned:
        done = " (done)" if trial.state == "done" else ""
        lines.append(f"{trial.number:>4}  {trial.label}: {trial.problem or _needs(trial)}{done}")
    time = "unknown: a base has not been trained here yet"
    if (seconds := _total(planned)) is not None:
        time = f"about {format_duration(seconds)} of training"
    lines.append(f"time     {time}; without evaluation")
    lines.append("reused   equal prepared data and equal answers of a base are made once")
    return "\n".join(lines)


def _needs(trial: PlannedTrial) -> str:
    work = f"{trial.trained_parameters:,} parameters trained on {trial.tokens:,} tokens of {trial.train_rows:,} rows"
    time = f", about {format_duration(trial.seconds)}" if trial.seconds is not None else ""
    return f"{work}, about {trial.memory_gib:.1f} GiB{time}"


def _total(planned: list[PlannedTrial]) -> float | None:
    """Return the remaining seconds of training, or None if those of a trial are unknown."""
    remaining = [trial.seconds for trial in planned if trial.state != "done" and trial.problem is None]
    known = [seconds for seconds in remaining if seconds is not None]
    return sum(known) if len(known) == len(remaining) else None
