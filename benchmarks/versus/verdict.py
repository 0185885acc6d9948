"""The time from a recipe to a verdict: the demo against the same job as a script of TRL and transformers."""

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.versus.entries import Entry, skipped, timed
from benchmarks.versus.jobs import Job, prepare, read_job
from benchmarks.versus.measure import Measured, measure
from benchmarks.versus.plan import Plan
from benchmarks.versus.rows import ROOT
from benchmarks.versus.settings import peers
from benchmarks.versus.spread import Spread, ratios, significant
from benchmarks.versus.training import best_of_each, try_all

from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.demo.shop import create_tables
from tunesmith.recipe.load import dump_recipe, load_recipe

_RECIPE = ROOT / "recipes" / "demo" / "recipe.yaml"
_QUICK = (
    "data.source.rows=200", "train.max_steps=3", "train.valid_every_steps=3", "evaluate.rows=6",
    "evaluate.max_new_tokens=16",
)  # fmt: skip
_REFUSED = 4  # a verdict that does not allow promotion is a result too
_BATCHES = (8, 32)


def verdicts(plan: Plan, say: Callable[[str], None]) -> list[Entry]:
    """Measure the time to a verdict. The peer uses the fastest setting on these rows."""
    folder = plan.scratch / "verdict"
    job = _job(folder, plan)
    ours: list[Measured] = []
    theirs: dict[str, list[Measured]] = {}
    tasks = {}
    for repeat in range(plan.repeats):
        run_folder = folder / f"whole-{repeat}"
        request = {
            "arguments": ["run", str(folder / "recipe.yaml"), "--out", str(run_folder)],
            "good_exits": [_REFUSED],
        }
        own = measure("ours_command.py", request, folder / f"{repeat}-ours", limit_seconds=4 * plan.run_seconds)
        ours.append(own)
        say(f"tunesmith: {own.error or f'{own.seconds:.0f} s'}")
        if own.error:
            break
        if plan.peers and not tasks:
            tasks = _peers_tasks(job, RunDir(run_folder), plan, say)
        for name, task in tasks.items():
            there = folder / f"{repeat}-{name}"
            peer = measure("trl_verdict.py", task, there, python=plan.peers, limit_seconds=4 * plan.run_seconds)
            theirs.setdefault(name, []).append(peer)
            say(f"{name}: {peer.error or f'{peer.seconds:.0f} s'}")
    made = [_ours(ours, folder)]
    made += [_theirs(name, runs, ours) for name, runs in theirs.items()]
    if plan.peers and not theirs:
        made.append(skipped("verdict", "trl", "none of its settings could train these rows, or ours failed"))
    return made if plan.peers else [*made, skipped("verdict", "peers", plan.no_peers or "no environment of peers")]


def _job(folder: Path, plan: Plan) -> Job:
    """Write the measured recipe of the demo, and prepare it once to get the order of rows."""
    folder.mkdir(parents=True)
    recipe = load_recipe(_RECIPE, _QUICK if plan.quick else ())
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    prepare(path, folder / "prepared")
    return read_job(folder, path, learning_rate=recipe.train.learning_rate, full=False, gpu=plan.gpu)


def _peers_tasks(job: Job, run: RunDir, plan: Plan, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Return {system: job}: the fastest setting, with answers by transformers at two batch sizes."""
    systems = peers(gpu=plan.gpu, bf16=plan.bf16, full=False, quick=plan.quick)
    tried = try_all(job, [system for system in systems if system.family == "trl"], plan, say)
    chosen = best_of_each(tried)[-1:]
    database = job.folder / "shop.sqlite"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        create_tables(connection)
        connection.commit()
    questions = _questions(job.folder / "questions.jsonl", run)
    recipe = load_recipe(run.resolved_recipe)
    more = {
        "schedule": recipe.train.schedule,
        "warmup_steps": round(recipe.train.warmup_fraction * job.steps),
        "database": str(database), "questions": str(questions), "max_new_tokens": recipe.evaluate.max_new_tokens,
    }  # fmt: skip
    batches = _BATCHES[:1] if plan.quick else _BATCHES
    return {
        f"{system.name}, answers by {batch}": {**job.for_peer(system, job.steps), **more, "batch": batch}
        for system in chosen
        for batch in batches
    }


def _questions(path: Path, run: RunDir) -> Path:
    """Write the rows of our verdict as messages, for the peers."""
    answered = {line["id"] for line in _answers(run)}
    with path.open("w", encoding="utf-8") as file:
        for example in read_jsonl(run.examples("test")):
            if example["id"] in answered:
                turns = [{"role": turn["role"], "content": turn["text"]} for turn in example["turns"]]
                file.write(json.dumps({"messages": turns[:-1], "reference": turns[-1]["content"]}) + "\n")
    return path


def _answers(run: RunDir) -> list[dict[str, Any]]:
    return list(read_jsonl(run.evaluation("tuned") / "generations.jsonl"))


def _ours(runs: list[Measured], folder: Path) -> Entry:
    good = [run for run in runs if run.error is None]
    made = timed("verdict", "tunesmith", "demo", [run.seconds for run in good])
    made["peak_rss_gib"] = max((run.result["peak_rss_gib"] for run in good), default=None)
    if good:
        run = RunDir(folder / "whole-0")
        values = read_json(run.verdict)["primary"]
        made |= {"score_base": values["base"], "score_tuned": values["tuned"], "versions": good[0].result["versions"]}
        made["stages"] = {
            stage: manifest["seconds"]
            for stage in ("prepare", "train", "evaluate")
            if (manifest := run.manifest(stage)) and "seconds" in manifest
        }
    if len(good) < len(runs):
        made["error"] = next(run.error for run in runs if run.error)
    return made


def _theirs(name: str, runs: list[Measured], ours: list[Measured]) -> Entry:
    good = [run for run in runs if run.error is None]
    made = timed("verdict", name, "demo", [run.seconds for run in good])
    made["peak_rss_gib"] = max((run.result["peak_rss_gib"] for run in good), default=None)
    if good:
        made |= {key: good[0].result[key] for key in ("score_base", "score_tuned", "stages", "versions")}
    pairs = [(run, other) for run, other in zip(ours, runs, strict=False) if not (run.error or other.error)]
    # Above 1 means that ours is faster, as everywhere: the ratio is of work per second.
    if ratio := ratios([1 / run.seconds for run, _ in pairs], [1 / other.seconds for _, other in pairs]):
        made |= {"ratio": Spread.of(ratio).to_json(), "ratio_each": [significant(value) for value in ratio]}
    if len(good) < len(runs):
        made["error"] = next(run.error for run in runs if run.error)
    return made
