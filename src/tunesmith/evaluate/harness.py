"""Run tasks of lm-evaluation-harness on base and tuned, and judge whether the tuned model got worse on them.

The harness's scores of single rows are compared in pairs, as those of a further held-out set.
"""

from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Guard, SetResult, Verdict
from tunesmith.evaluate.further_sets import with_set
from tunesmith.evaluate.harness_process import Found, ask_harness
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.row_scores import VerdictSettings, compare


def run_tasks(recipe: Recipe, run: RunDir) -> Found:
    """Run all tasks on base and tuned; return the metrics and rows of each, and write the rows to the run.

    Raises:
        RecipeError: a task or its data is missing.
        TunesmithError: the harness failed.
    """
    entries = recipe.evaluate.lm_eval
    if not entries:
        return {}
    log(f"lm-evaluation-harness: base and tuned on {', '.join(entry.task for entry in entries)}")
    found = ask_harness(recipe, run, with_models=True)
    for name, facts in found.items():
        for model in ("base", "tuned"):
            target = run.set_evaluation(name, model)
            target.mkdir(parents=True, exist_ok=True)
            write_jsonl(target / "scores.jsonl", facts[model])
    return found


def judge_tasks(verdict: Verdict, recipe: Recipe, found: Found) -> Verdict:
    """Return the verdict with a guard for each task, from the result of `run_tasks`."""
    limits = VerdictSettings(0.0, recipe.evaluate.confidence, recipe.seed)
    for entry in recipe.evaluate.lm_eval:
        facts = found[entry.set_name]
        metrics = {
            name: compare(name, facts["base"], facts["tuned"], lower_is_better=not higher, settings=limits)
            for name, higher in facts["metrics"].items()
        }
        guard = Guard(metrics[entry.metric or next(iter(metrics))], entry.max_drop, entry.set_name)
        verdict = with_set(verdict, SetResult(len(facts["base"]), metrics), guard)
    return verdict
