"""Profile a training step, and compare it with a lower bound: the matrix products of the frozen base."""

from collections.abc import Callable
from typing import Any

from benchmarks.versus.entries import Entry, entry
from benchmarks.versus.jobs import BASE, make_job
from benchmarks.versus.measure import Measured, measure
from benchmarks.versus.plan import Plan
from benchmarks.versus.rows import rows_of
from benchmarks.versus.spread import Spread, ratios, significant

_SPARE_ROWS = 1.15


def profiling(plan: Plan, say: Callable[[str], None]) -> list[Entry]:
    """Measure the bound and the steps in alternation, then profile one step."""
    made = []
    for dataset in ("dialogsum", "viggo"):
        rows = rows_of(dataset, round(plan.steps * plan.examples_per_step * _SPARE_ROWS) + 8)
        folder = plan.scratch / "profile" / dataset
        job = make_job(folder, rows.rows, steps=plan.steps, examples_per_step=plan.examples_per_step, gpu=plan.gpu)
        tokens, trained = (round(sum(numbers) / len(numbers)) for numbers in (job.tokens, job.trained))
        bound_request = {"base": BASE, "tokens": tokens, "trained": trained, "rounds": 2 if plan.quick else 5}
        bounds: list[Measured] = []
        runs: list[Measured] = []
        for repeat in range(plan.repeats):
            bounds.append(measure("matmul_bound.py", bound_request, folder / f"bound-{repeat}"))
            request, log = job.for_us()
            runs.append(measure("ours_command.py", request, folder / f"turn-{repeat}", log=log))
        request, log = job.for_us()
        profiled = measure("ours_profile.py", {**request, "step": plan.steps - 1}, folder / "profile", log=log)
        facts = {"rows": "demo" if rows.instead else dataset, "tokens_a_step": tokens, "trained_a_step": trained}
        made.append(_entry(bounds, runs, profiled, facts))
        say(f"{dataset}: share of the bound {made[-1].get('share_of_bound', {}).get('median')}")
    return made


def _entry(bounds: list[Measured], runs: list[Measured], profiled: Measured, facts: dict[str, Any]) -> Entry:
    made = entry("profile", "tunesmith", runs, phase="in turns", **facts)
    bound_rates = [None if run.error else facts["tokens_a_step"] / run.result["seconds"] for run in bounds]
    reached = [value for value in bound_rates if value is not None]
    if reached:
        made["bound_tokens_per_second"] = Spread.of(reached).to_json()
        made["bound_precision"] = next(run.result["precision"] for run in bounds if not run.error)
    if share := ratios([run.tokens_per_second for run in runs], bound_rates):
        made["share_of_bound"] = Spread.of(share).to_json()
        made["share_of_bound_each"] = [significant(value) for value in share]
    if profiled.error is None:
        made["operations"] = profiled.result["operations"]
        made["profiled_step_seconds"] = profiled.result["step_seconds"]
    errors = [run.error for run in (*bounds, *runs, profiled) if run.error]
    return {**made, "error": errors[0]} if errors else made
