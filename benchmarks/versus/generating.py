"""Greedy answers to many prompts: our generation against transformers' `generate` at several batch sizes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.versus.entries import Entry, skipped, timed
from benchmarks.versus.jobs import BASE, make_job
from benchmarks.versus.measure import Measured, measure
from benchmarks.versus.plan import Plan
from benchmarks.versus.rows import rows_of
from benchmarks.versus.spread import Spread, ratios, significant

from tunesmith.core.jsonl import read_jsonl
from tunesmith.fetch.reference import resolve

_BATCHES = (1, 8, 32, 64)
_SPARE_ROWS = 1.15


def generating(plan: Plan, say: Callable[[str], None]) -> list[Entry]:
    """Measure generated tokens per second, and whether the answers are equal."""
    prompts, new_tokens = (8, 8) if plan.quick else (64, 64)
    rows = rows_of("dialogsum", round(prompts * _SPARE_ROWS) + 8)
    folder = plan.scratch / "generate"
    job = make_job(folder, rows.rows, steps=prompts // 4, examples_per_step=4)
    request = {"base": BASE, "model": str(resolve(BASE).path), "max_new_tokens": new_tokens, **questions(job.rows)}
    batches = (1, 8) if plan.quick else _BATCHES
    names = ["tunesmith", *(f"transformers-{batch}" for batch in batches if plan.peers)]
    runs_of: dict[str, list[Measured]] = {name: [] for name in names}
    for repeat in range(plan.repeats):
        for name in names:
            place = folder / f"{repeat}-{name}"
            if name == "tunesmith":
                run = measure("ours_generate.py", request, place, limit_seconds=plan.run_seconds)
            else:
                request_of_peer = {**request, "batch": int(name.rpartition("-")[2]), "gpu": plan.gpu}
                run = measure(
                    "transformers_generate.py",
                    request_of_peer,
                    place,
                    python=plan.peers,
                    limit_seconds=plan.run_seconds,
                )
            runs_of[name].append(run)
            say(f"{name}: {run.error or f'{_rate(run):.1f} tokens/s'}")
    facts = {"rows": "demo" if rows.instead else "dialogsum", "prompts": prompts, "max_new_tokens": new_tokens}
    made = [_entry(name, runs, runs_of["tunesmith"], facts) for name, runs in runs_of.items()]
    return made if plan.peers else [*made, skipped("generate", "peers", plan.no_peers or "no environment of peers")]


def questions(rows: Path) -> dict[str, Any]:
    """Return the prompts and stop ids of tokenized rows. A prompt ends before the first trained token."""
    prompts, stops = [], set()
    for row in read_jsonl(rows):
        learned = [place for place, label in enumerate(row["labels"]) if label != -100]
        prompts.append(row["input_ids"][: learned[0]])
        stops.add(row["input_ids"][learned[-1]])
    return {"prompts": prompts, "stop_ids": sorted(stops)}


def _entry(name: str, runs: Sequence[Measured], ours: Sequence[Measured], facts: dict[str, Any]) -> Entry:
    good = [run for run in runs if run.error is None]
    made = timed("generate", name, "answers", [run.result["seconds"] for run in good], **facts)
    rates = [_rate(run) for run in good]
    made["tokens_per_second"] = significant(Spread.of(rates).median) if rates else None
    made["tokens_per_second_spread"] = Spread.of(rates).to_json() if rates else None
    made["peak_rss_gib"] = max((run.result["peak_rss_gib"] for run in good), default=None)
    made["versions"] = good[0].result["versions"] if good else {}
    reference = next((run.result["answers"] for run in ours if run.error is None), None)
    if good and reference is not None:
        made["answers_equal"] = sum(a == b for a, b in zip(good[0].result["answers"], reference, strict=True))
    if name != "tunesmith" and (ratio := ratios([_rate(run) for run in ours], [_rate(run) for run in runs])):
        made |= {
            "ratio": Spread.of(ratio).to_json(),
            "ratio_each": [significant(value) for value in ratio],
        }
    if len(good) < len(runs):
        made["error"] = next(run.error for run in runs if run.error)
    return made


def _rate(run: Measured) -> float | None:
    return None if run.error else sum(map(len, run.result["answers"])) / run.result["seconds"]
