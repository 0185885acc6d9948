"""From a recipe to a verdict: the demo's job as it is, beside the same job as a script of TRL and transformers."""

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
_REFUSED = 4  # the verdict does not allow promotion: a result, too
_BATCHES = (8, 32)


def verdicts(plan: Plan, say: Callable[[str], None]) -> list[Entry]:
    """Measure the time to a verdict. The peer's setting is the fastest of those that are tried on these rows."""
    folder = plan.scratch / "verdict"
    job = _job(folder, plan)
    ours: list[Measured] = []
    theirs: dict[str, list[Measured]] = {}
    tasks = {}
    for repeat in range(plan.repeats):
        run = folder / f"whole-{repeat}"
        told = {"arguments": ["run", str(folder / "recipe.yaml"), "--out", str(run)], "good_exits": [_REFUSED]}
        one = measure("ours_verb.py", told, folder / f"{repeat}-ours", limit_seconds=4 * plan.run_seconds)
        ours.append(one)
        say(f"tunesmith: {one.error or f'{one.seconds:.0f} s'}")
        if one.error:
            break
        if plan.peers and not tasks:
            tasks = _peers_tasks(job, RunDir(run), plan, say)
        for name, task in tasks.items():
            there = folder / f"{repeat}-{name}"
            one = measure("trl_verdict.py", task, there, python=plan.peers, limit_seconds=4 * plan.run_seconds)
            theirs.setdefault(name, []).append(one)
            say(f"{name}: {one.error or f'{one.seconds:.0f} s'}")
    made = [_ours(ours, folder)]
    made += [_theirs(name, runs, ours) for name, runs in theirs.items()]
    if plan.peers and not theirs:
        made.append(skipped("verdict", "trl", "none of its settings trained these rows, or ours failed before"))
    return made if plan.peers else [*made, skipped("verdict", "peers", plan.no_peers or "no environment for peers")]


def _job(folder: Path, plan: Plan) -> Job:
    """Write the demo's recipe down as it is measured, and prepare it once for the rows' order."""
    folder.mkdir(parents=True)
    recipe = load_recipe(_RECIPE, _QUICK if plan.quick else ())
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    prepare(path, folder / "prepared")
    return read_job(folder, path, learning_rate=recipe.train.learning_rate, full=False, gpu=plan.gpu)


def _peers_tasks(job: Job, run: RunDir, plan: Plan, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Return {system: job}: the fastest setting, with transformers' answers in batches of two sizes."""
    found = peers(gpu=plan.gpu, bf16=plan.bf16, full=False, quick=plan.quick)
    tried = try_all(job, [system for system in found if system.family == "trl"], plan, say)
    chosen = best_of_each(tried)[-1:]
    database = job.folder / "shop.sqlite"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        create_tables(connection)
        connection.commit()
    asked = _questions(job.folder / "questions.jsonl", run)
    recipe = load_recipe(run.resolved_recipe)
    more = {
        "schedule": recipe.train.schedule,
        "warmup_steps": round(recipe.train.warmup_fraction * job.steps),
        "database": str(database), "questions": str(asked), "max_new_tokens": recipe.evaluate.max_new_tokens,
    }  # fmt: skip
    batches = _BATCHES[:1] if plan.quick else _BATCHES
    return {
        f"{system.name}, answers by {batch}": {**job.for_peer(system, job.steps), **more, "batch": batch}
        for system in chosen
        for batch in batches
    }


def _questions(path: Path, run: RunDir) -> Path:
    """Write down the rows that our verdict is about, as messages, for whoever shall answer the same."""
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
    good = [one for one in runs if one.error is None]
    made = timed("verdict", "tunesmith", "demo", [one.seconds for one in good])
    made["peak_rss_gib"] = max((one.result["peak_rss_gib"] for one in good), default=None)
    if good:
        run = RunDir(folder / "whole-0")
        told = read_json(run.verdict)["primary"]
        made |= {"score_base": told["base"], "score_tuned": told["tuned"], "versions": good[0].result["versions"]}
        made["stages"] = {
            stage: manifest["seconds"]
            for stage in ("prepare", "train", "evaluate")
            if (manifest := run.manifest(stage)) and "seconds" in manifest
        }
    if len(good) < len(runs):
        made["error"] = next(one.error for one in runs if one.error)
    return made


def _theirs(name: str, runs: list[Measured], ours: list[Measured]) -> Entry:
    good = [one for one in runs if one.error is None]
    made = timed("verdict", name, "demo", [one.seconds for one in good])
    made["peak_rss_gib"] = max((one.result["peak_rss_gib"] for one in good), default=None)
    if good:
        made |= {key: good[0].result[key] for key in ("score_base", "score_tuned", "stages", "versions")}
    pairs = [(one, other) for one, other in zip(ours, runs, strict=False) if not (one.error or other.error)]
    # As everywhere, above 1 means that ours is faster: what is compared is work done a second.
    if told := ratios([1 / one.seconds for one, _ in pairs], [1 / other.seconds for _, other in pairs]):
        made |= {"ratio": Spread.of(told).to_json(), "ratio_each": [significant(one) for one in told]}
    if len(good) < len(runs):
        made["error"] = next(one.error for one in runs if one.error)
    return made
