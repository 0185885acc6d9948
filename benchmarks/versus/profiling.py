"""Where a step's time goes, and how much of the least possible time it is: the base's own products and nothing else."""

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
    """Measure the bound and the steps in turns, then look into one step."""
    made = []
    for dataset in ("dialogsum", "viggo"):
        rows = rows_of(dataset, round(plan.steps * plan.examples_per_step * _SPARE_ROWS) + 8)
        folder = plan.scratch / "profile" / dataset
        job = make_job(folder, rows.rows, steps=plan.steps, examples_per_step=plan.examples_per_step, gpu=plan.gpu)
        tokens, trained = (round(sum(numbers) / len(numbers)) for numbers in (job.tokens, job.trained))
        asked = {"base": BASE, "tokens": tokens, "trained": trained, "rounds": 2 if plan.quick else 5}
        bounds: list[Measured] = []
        runs: list[Measured] = []
        for repeat in range(plan.repeats):
            bounds.append(measure("matmul_bound.py", asked, folder / f"bound-{repeat}"))
            told, log = job.for_us()
            runs.append(measure("ours_verb.py", told, folder / f"turn-{repeat}", log=log))
        told, log = job.for_us()
        looked = measure("ours_profile.py", {**told, "step": plan.steps - 1}, folder / "profile", log=log)
        facts = {"rows": "demo" if rows.instead else dataset, "tokens_a_step": tokens, "trained_a_step": trained}
        made.append(_entry(bounds, runs, looked, facts))
        say(f"{dataset}: share of the bound {made[-1].get('share_of_bound', {}).get('median')}")
    return made


def _entry(bounds: list[Measured], runs: list[Measured], looked: Measured, facts: dict[str, Any]) -> Entry:
    made = entry("profile", "tunesmith", runs, phase="in turns", **facts)
    most = [None if one.error else facts["tokens_a_step"] / one.result["seconds"] for one in bounds]
    reached = [value for value in most if value is not None]
    if reached:
        made["bound_tokens_per_second"] = Spread.of(reached).to_json()
        made["bound_precision"] = next(one.result["precision"] for one in bounds if not one.error)
    if told := ratios([one.tokens_per_second for one in runs], most):
        made["share_of_bound"] = Spread.of(told).to_json()
        made["share_of_bound_each"] = [significant(one) for one in told]
    if looked.error is None:
        made["operations"] = looked.result["operations"]
        made["profiled_step_seconds"] = looked.result["step_seconds"]
    errors = [one.error for one in (*bounds, *runs, looked) if one.error]
    return {**made, "error": errors[0]} if errors else made
