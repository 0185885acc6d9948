"""Training beside other trainers: each of their settings is tried once, the best then run in turns with ours."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.versus.entries import Entry, entry, skipped
from benchmarks.versus.jobs import Job, Unequal, make_job
from benchmarks.versus.measure import Measured, measure
from benchmarks.versus.plan import Plan
from benchmarks.versus.rows import Row, rows_of
from benchmarks.versus.settings import OURS, System, peers
from benchmarks.versus.spread import ratios

# A setting that is this much slower than its family's best is told as it was when it was tried, and not run again.
_HOPELESS = 3.0
# Two systems in fp32 add up in another order, and no more.
_SAME_LOSS = 1e-2
_SPARE_ROWS = 1.15

Say = Callable[[str], None]


def dialogsum(plan: Plan, say: Say) -> list[Entry]:
    """LoRA on summaries of dialogues: long prompts, short answers."""
    return training("dialogsum", "dialogsum", plan, say)


def viggo(plan: Plan, say: Say) -> list[Entry]:
    """LoRA on sentences from data: short rows."""
    return training("viggo", "viggo", plan, say)


def dialogsum_full(plan: Plan, say: Say) -> list[Entry]:
    """Full fine-tuning on summaries of dialogues."""
    return training("dialogsum-full", "dialogsum", plan, say, full=True)


def training(name: str, dataset: str, plan: Plan, say: Say, *, full: bool = False) -> list[Entry]:
    """Compare training on a dataset.

    Raises:
        Unequal: a system was fed other tokens than the others.
    """
    wanted = round(plan.steps * plan.examples_per_step * _SPARE_ROWS) + 8
    rows = rows_of(dataset, wanted)
    if rows.instead:
        say(rows.instead)
    job = make_job(
        plan.scratch / name, rows.rows, steps=plan.steps, examples_per_step=plan.examples_per_step, full=full,
        gpu=plan.gpu,
    )  # fmt: skip
    facts = {"rows": dataset if rows.instead is None else "demo", "mean_tokens": _mean(job.tokens, job)}
    facts["mean_trained"] = _mean(job.trained, job)
    systems = peers(gpu=plan.gpu, bf16=plan.bf16, full=full, quick=plan.quick)
    tried = try_all(job, systems, plan, say)
    chosen = best_of_each(tried)
    reference = _loss_in_fp32(plan, name, rows.rows, full=full, say=say)
    measured = in_turns(job, [OURS, *chosen], plan, say)
    made = entries(name, tried, measured, facts, reference)
    return made if plan.peers else [*made, skipped(name, "peers", plan.no_peers or "no environment for peers")]


def try_all(job: Job, systems: Sequence[System], plan: Plan, say: Say) -> dict[System, Measured]:
    """Run every setting that is asked for once, for a few steps."""
    if plan.peers is None:
        return {}
    found = {}
    for system in systems:
        if plan.systems and system.name not in plan.systems:
            continue
        steps = min(plan.tried_steps, job.steps)
        folder = job.folder / "tried" / system.name
        python, told = plan.python_of(system.family), job.for_peer(system, steps)
        one = measure(system.worker, told, folder, python=python, limit_seconds=plan.tried_seconds)
        _check(job, system, one)
        found[system] = one
        say(f"tried {system.name}: {_told(one)}")
    return found


def best_of_each(tried: dict[System, Measured]) -> list[System]:
    """Return what runs in turns: each family's default, unless it is hopeless or fails, and its fastest setting."""
    chosen = []
    for family in dict.fromkeys(system.family for system in tried):
        rates = {s: one.tokens_per_second for s, one in tried.items() if s.family == family}
        able = {system: speed for system, speed in rates.items() if speed is not None}
        if not able:
            continue
        best = max(able, key=lambda system: able[system])
        default = next((s for s in able if s.setting_name == "default"), None)
        if default not in (None, best) and able[best] < _HOPELESS * able[default]:
            chosen.append(default)
        chosen.append(best)
    return chosen


def in_turns(job: Job, systems: Sequence[System], plan: Plan, say: Say) -> dict[System, list[Measured]]:
    """Run systems one after the other, over and over, so that a drift of the machine meets all alike."""
    found: dict[System, list[Measured]] = {system: [] for system in systems}
    for repeat in range(plan.repeats):
        for system in systems:
            folder = job.folder / "turns" / f"{repeat}-{system.name}"
            if system is OURS:
                told, log = job.for_us()
                one = measure(system.worker, told, folder, log=log, limit_seconds=plan.run_seconds)
            else:
                told = job.for_peer(system, job.steps)
                one = measure(
                    system.worker, told, folder, python=plan.python_of(system.family), limit_seconds=plan.run_seconds
                )
            _check(job, system, one)
            found[system].append(one)
            say(f"{repeat + 1}/{plan.repeats} {system.name}: {_told(one)}")
    return found


def entries(
    name: str,
    tried: dict[System, Measured],
    measured: dict[System, list[Measured]],
    facts: dict[str, Any],
    reference: float | None,
) -> list[Entry]:
    """Return one entry a system: of the turns where it ran in them, else of when it was tried."""
    our_rates = [one.tokens_per_second for one in measured.get(OURS, [])]
    found = []
    for system, runs in measured.items():
        told = None if system is OURS else ratios(our_rates, [one.tokens_per_second for one in runs])
        found.append(
            entry(name, system.name, runs, ratio=told, phase="in turns", **facts, **_losses(system, runs, reference))
        )
    for system, one in tried.items():
        if system not in measured:
            found.append(
                entry(name, system.name, [one], phase="tried once", **facts, **_losses(system, [one], reference))
            )
    return found


def _losses(system: System, runs: Sequence[Measured], reference: float | None) -> dict[str, Any]:
    """Return the first step's loss, and how far it is from ours in fp32 where it is of the same rows.

    Raises:
        Unequal: both are in fp32, and the losses are not the same.
    """
    first = _first_loss(runs)
    if first is None or reference is None or not system.in_order:
        return {} if first is None else {"first_loss": round(first, 6)}
    differs = abs(first - reference)
    if system.is_fp32 and differs > _SAME_LOSS:
        raise Unequal(f"the first step's loss of {system.name} is {first:.4f}, and ours in fp32 is {reference:.4f}")
    return {"first_loss": round(first, 6), "first_loss_differs_by": round(differs, 6)}


def _loss_in_fp32(plan: Plan, name: str, rows: list[Row], *, full: bool, say: Say) -> float | None:
    """Return the loss of our first step in fp32, whatever the machine computes in by itself."""
    folder = plan.scratch / f"{name}-fp32"
    job = make_job(
        folder, rows, steps=1, examples_per_step=plan.examples_per_step, full=full, gpu=plan.gpu, precision="fp32"
    )
    told, log = job.for_us()
    one = measure(OURS.worker, told, folder / "turn", log=log, limit_seconds=plan.run_seconds)
    loss = _first_loss([one])
    say(f"loss of our first step in fp32: {one.error or f'{loss:.4f}'}")
    return loss


def _first_loss(runs: Sequence[Measured]) -> float | None:
    return next((run.steps[0]["loss"] for run in runs if run.steps and run.steps[0]["loss"] is not None), None)


def _check(job: Job, system: System, one: Measured) -> None:
    """Raise Unequal where a run was not given the same work; a worker says so itself where it knows."""
    if one.error and "unequal tokens" in one.error:
        raise Unequal(f"{system.name}: {one.error}")
    job.must_equal(system, one.steps)


def _mean(numbers: Sequence[int], job: Job) -> float:
    return round(sum(numbers) / (len(numbers) * job.examples_per_step), 1)


def _told(one: Measured) -> str:
    speed = one.tokens_per_second
    words = f"{speed:.1f} tokens/s, " if speed else ""
    held = one.result.get("peak_rss_gib")
    words += f"{held:.2f} GiB, " if held else ""
    return words + (f"FAILED: {one.error}" if one.error else f"{one.seconds:.0f} s in all")
