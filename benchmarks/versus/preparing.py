"""Prepared rows per second and memory: `prepare` against the tokenization of TRL's SFTTrainer."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.versus.entries import Entry, skipped, timed
from benchmarks.versus.jobs import BASE, LORA, write_recipe
from benchmarks.versus.machine import machine
from benchmarks.versus.measure import Measured, measure
from benchmarks.versus.plan import Plan
from benchmarks.versus.rows import Row, rows_of, varied
from benchmarks.versus.spread import Spread, ratios, significant

from tunesmith.fetch.reference import resolve

_DISTINCT_ROWS = 12_000


def preparing(plan: Plan, say: Callable[[str], None]) -> list[Entry]:
    """Measure processes from their start until the tokens are on disk."""
    count = 2_000 if plan.quick else 100_000
    rows = rows_of("dialogsum", min(count, _DISTINCT_ROWS))
    folder = plan.scratch / "prepare"
    many = varied(rows.rows, count)
    recipe = write_recipe(folder, many, tuning=LORA, train={"learning_rate": 2e-4, "max_steps": 1})
    messages = folder / "messages.jsonl"
    _write_messages(messages, many)
    systems: dict[str, dict[str, Any]] = {"tunesmith": {}}
    if plan.peers:
        cores = machine()["cores"]
        systems |= {"trl-default": {"processes": None}, f"trl-{cores}-processes": {"processes": cores}}
    runs_of: dict[str, list[Measured]] = {name: [] for name in systems}
    for repeat in range(plan.repeats):
        for name, settings in systems.items():
            place = folder / f"{repeat}-{name}"
            if name == "tunesmith":
                job = {"arguments": ["prepare", str(recipe), "--out", str(folder / f"run-{repeat}")]}
                run = measure("ours_command.py", job, place, limit_seconds=plan.run_seconds)
            else:
                job = {"model": str(resolve(BASE).path), "messages": str(messages), **settings}
                run = measure("trl_prepare.py", job, place, python=plan.peers, limit_seconds=plan.run_seconds)
            runs_of[name].append(run)
            say(f"{name}: {run.error or f'{count / run.seconds:.0f} rows/s'}")
    facts = {"rows": "demo" if rows.instead else "dialogsum", "count": count}
    made = [_entry(name, runs, runs_of["tunesmith"], facts) for name, runs in runs_of.items()]
    return made if plan.peers else [*made, skipped("prepare", "peers", plan.no_peers or "no environment of peers")]


def _write_messages(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            turns = {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["response"]}],
            }
            file.write(json.dumps(turns) + "\n")


def _entry(name: str, runs: Sequence[Measured], ours: Sequence[Measured], facts: dict[str, Any]) -> Entry:
    good = [run for run in runs if run.error is None]
    made = timed("prepare", name, "rows", [run.seconds for run in good], **facts)
    rates = [facts["count"] / run.seconds for run in good]
    made["rows_per_second"] = significant(Spread.of(rates).median) if rates else None
    made["rows_per_second_spread"] = Spread.of(rates).to_json() if rates else None
    made["peak_rss_gib"] = max((_held(run) for run in good), default=None)
    made["versions"] = good[0].result["versions"] if good else {}
    if name != "tunesmith":
        speeds = [[None if run.error else 1 / run.seconds for run in side] for side in (ours, runs)]
        if ratio := ratios(*speeds):
            made |= {"ratio": Spread.of(ratio).to_json(), "ratio_each": [significant(value) for value in ratio]}
    if len(good) < len(runs):
        made["error"] = next(run.error for run in runs if run.error)
    return made


def _held(run: Measured) -> float:
    """Return the memory of the process and its helpers, each counted as the largest helper."""
    return float(run.result["peak_rss_gib"] + run.result.get("helpers", 0) * run.result.get("helper_rss_gib", 0.0))
