"""Compare training with other trainers: try each of their settings once, then alternate the best with ours."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.versus.entries import Entry, entry, skipped
from benchmarks.versus.jobs import Job, Unequal, make_job
from benchmarks.versus.measure import Measured, measure
from benchmarks.versus.plan import Plan
from benchmarks.versus.rows import Row, rows_of
from benchmarks.versus.settings import OURS, System, peers
from benchmarks.versus.spread import ratios

# A setting that is slower than its family's best by this factor is reported from its trial and not run again.
_HOPELESS = 3.0
# In fp32, two systems differ only in the order of additions.
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
        Unequal: a system read other tokens than the others.
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
    return made if plan.peers else [*made, skipped(name, "peers", plan.no_peers or "no environment of peers")]


def try_all(job: Job, systems: Sequence[System], plan: Plan, say: Say) -> dict[System, Measured]:
    """Run every wanted setting once, for a few steps."""
    if plan.peers is None:
        return {}
    runs_of = {}
    for system in systems:
        if plan.systems and system.name not in plan.systems:
            continue
        steps = min(plan.tried_steps, job.steps)
        folder = job.folder / "tried" / system.name
        python, request = plan.python_of(system.family), job.for_peer(system, steps)
        run = measure(system.worker, request, folder, python=python, limit_seconds=plan.tried_seconds)
        _check(job, system, run)
        runs_of[system] = run
        say(f"tried {system.name}: {_told(run)}")
    return runs_of


def best_of_each(tried: dict[System, Measured]) -> list[System]:
    """Return the settings to alternate: each family's default, unless it failed or is far too slow, and its fastest."""
    chosen = []
    for family in dict.fromkeys(system.family for system in tried):
        rates = {s: run.tokens_per_second for s, run in tried.items() if s.family == family}
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
    """Run the systems in alternation, so that a drift of the machine affects all alike."""
    runs_of: dict[System, list[Measured]] = {system: [] for system in systems}
    for repeat in range(plan.repeats):
        for system in systems:
            folder = job.folder / "turns" / f"{repeat}-{system.name}"
            if system is OURS:
                request, log = job.for_us()
                run = measure(system.worker, request, folder, log=log, limit_seconds=plan.run_seconds)
            else:
                request = job.for_peer(system, job.steps)
                run = measure(
                    system.worker, request, folder, python=plan.python_of(system.family), limit_seconds=plan.run_seconds
                )
            _check(job, system, run)
            runs_of[system].append(run)
            say(f"{repeat + 1}/{plan.repeats} {system.name}: {_told(run)}")
    return runs_of


def entries(
    name: str,
    tried: dict[System, Measured],
    measured: dict[System, list[Measured]],
    facts: dict[str, Any],
    reference: float | None,
) -> list[Entry]:
    """Return one entry per system: of the alternating runs, or else of its trial."""
    our_rates = [run.tokens_per_second for run in measured.get(OURS, [])]
    entries = []
    for system, runs in measured.items():
        ratio = None if system is OURS else ratios(our_rates, [run.tokens_per_second for run in runs])
        entries.append(
            entry(name, system.name, runs, ratio=ratio, phase="in turns", **facts, **_losses(system, runs, reference))
        )
    for system, run in tried.items():
        if system not in measured:
            entries.append(
                entry(name, system.name, [run], phase="tried once", **facts, **_losses(system, [run], reference))
            )
    return entries


def _losses(system: System, runs: Sequence[Measured], reference: float | None) -> dict[str, Any]:
    """Return the loss of the first step and, if its rows are the same, the difference to ours in fp32.

    Raises:
        Unequal: both are in fp32, and the losses differ.
    """
    first = _first_loss(runs)
    if first is None or reference is None or not system.in_order:
        return {} if first is None else {"first_loss": round(first, 6)}
    differs = abs(first - reference)
    if system.is_fp32 and differs > _SAME_LOSS:
        raise Unequal(f"the first step's loss of {system.name} is {first:.4f}, and ours in fp32 is {reference:.4f}")
    return {"first_loss": round(first, 6), "first_loss_differs_by": round(differs, 6)}


def _loss_in_fp32(plan: Plan, name: str, rows: list[Row], *, full: bool, say: Say) -> float | None:
    """Return the loss of our first step in fp32, whatever the default precision is."""
    folder = plan.scratch / f"{name}-fp32"
    job = make_job(
        folder, rows, steps=1, examples_per_step=plan.examples_per_step, full=full, gpu=plan.gpu, precision="fp32"
    )
    request, log = job.for_us()
    run = measure(OURS.worker, request, folder / "turn", log=log, limit_seconds=plan.run_seconds)
    loss = _first_loss([run])
    say(f"loss of our first step in fp32: {run.error or f'{loss:.4f}'}")
    return loss


def _first_loss(runs: Sequence[Measured]) -> float | None:
    return next((run.steps[0]["loss"] for run in runs if run.steps and run.steps[0]["loss"] is not None), None)


def _check(job: Job, system: System, run: Measured) -> None:
    """Raise Unequal if a run did other work; some workers report it themselves."""
    if run.error and "unequal tokens" in run.error:
        raise Unequal(f"{system.name}: {run.error}")
    job.must_equal(system, run.steps)


def _mean(numbers: Sequence[int], job: Job) -> float:
    return round(sum(numbers) / (len(numbers) * job.examples_per_step), 1)


def _told(run: Measured) -> str:
    speed = run.tokens_per_second
    words = f"{speed:.1f} tokens/s, " if speed else ""
    held = run.result.get("peak_rss_gib")
    words += f"{held:.2f} GiB, " if held else ""
    return words + (f"FAILED: {run.error}" if run.error else f"{run.seconds:.0f} s in all")
