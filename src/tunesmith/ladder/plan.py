"""What a ladder would do: each rung's parameters, tokens, memory and time, without running any."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, DoesNotFit
from tunesmith.core.progress import clock
from tunesmith.ladder.rungs import Ladder, Rung
from tunesmith.plan.run_plan import plan_run


@dataclass(frozen=True, slots=True)
class PlannedRung:
    """One rung before it runs; sizes in GiB. `problem` says why it would not start, and then nothing else is known."""

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


def plan_ladder(ladder: Ladder, recipe: Path) -> list[PlannedRung]:
    """Return what each rung would train and need.

    Args:
        recipe: the recipe's file, or the ladder's folder.

    Raises:
        RecipeError: a model cannot be had.
    """
    return [_planned(ladder, rung, recipe) for rung in ladder.rungs]


def _planned(ladder: Ladder, rung: Rung, recipe: Path) -> PlannedRung:
    run = ladder.run(rung)
    state = "done" if run.manifest("evaluate") else "to do"
    try:
        if run.resolved_recipe.exists():
            found = plan_run(run.path)
        else:
            found = plan_run(recipe, [*ladder.overrides, *rung.changes], out=run.path)
        found.must_fit()
    except (DataError, DoesNotFit) as error:
        return PlannedRung(rung.number, rung.label, rung.folder, state, problem=error.message)
    return PlannedRung(
        rung.number, rung.label, rung.folder, state,
        trained_parameters=found.memory.trainable_parameters, train_rows=found.counts["train"],
        tokens=found.training_tokens, memory_gib=round(found.memory.total, 2),
        seconds=found.seconds[0] if found.seconds else None,
    )  # fmt: skip


def plan_json(ladder: Ladder, planned: list[PlannedRung]) -> dict[str, Any]:
    """Return the plan as JSON."""
    return {"ladder": str(ladder.path), "rungs": [asdict(rung) for rung in planned], "seconds": _total(planned)}


def plan_text(ladder: Ladder, planned: list[PlannedRung]) -> str:
    """Return the plan for a terminal."""
    lines = [f"ladder   {ladder.path}"]
    for rung in planned:
        lines.append(
            f"{rung.number:>4}  {rung.label}: {rung.problem or _needs(rung)}{' (done)' * (rung.state == 'done')}"
        )
    left = _total(planned)
    time = (
        f"about {clock(left)} of training" if left is not None else "not known: a model has not been trained here yet"
    )
    lines.append(f"time     {time}; evaluation comes on top")
    lines.append("shared   data that is prepared alike, and the answers of a base that is asked alike, are made once")
    return "\n".join(lines)


def _needs(rung: PlannedRung) -> str:
    time = f", about {clock(rung.seconds)}" if rung.seconds is not None else ""
    return (
        f"{rung.trained_parameters:,} weights trained on {rung.tokens:,} tokens of {rung.train_rows:,} rows, "
        f"about {rung.memory_gib:.1f} GiB{time}"
    )


def _total(planned: list[PlannedRung]) -> float | None:
    """Return the seconds of training that are left, or None where a rung's are not known."""
    left = [rung.seconds for rung in planned if rung.state != "done" and rung.problem is None]
    known = [seconds for seconds in left if seconds is not None]
    return sum(known) if len(known) == len(left) else None
