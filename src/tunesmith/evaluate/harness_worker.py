"""The process that runs lm-evaluation-harness: `python -m tunesmith.evaluate.harness_worker REQUEST.json`.

It is a separate process, because the harness changes global state: logging, seeds, environment variables.
The request is an object; `tasks` are the sections of `evaluate.lm_eval`. Without `run` the tasks are only checked. The
answer is written to `out`:

{name: {"error": text, "hint": text}}             the task cannot be run
{name: {"metrics": {metric: higher is better}}}   it can
{name: {"metrics", "base": rows, "tuned": rows}}  it was run; a row is {"id", "group", metric: value, ...}
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.files import write_json

Row = dict[str, Any]
_BATCH_ROWS = 8
_MEAN = "mean"


def main() -> None:
    """Answer the request in a file."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = {task["set_name"]: _checked(task) for task in request["tasks"]}
    if "run" in request and not any("error" in facts for facts in found.values()):
        rows = _run(request, {name: list(facts["metrics"]) for name, facts in found.items()})
        found = {name: {**facts, **rows[name]} for name, facts in found.items()}
    write_json(Path(request["out"]), found)


def row_scores(samples: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Sequence[str]) -> list[Row]:
    """Return one row per document from the harness's samples by task. If a task has several filters, the first counts.

    Args:
        samples: {task: [{"doc_id", "filter", metric: value, ...}]}.
    """
    rows = []
    for task, lines in samples.items():
        own = [line for line in lines if line["filter"] == lines[0]["filter"]]
        for line in sorted(own, key=lambda line: line["doc_id"]):
            name = f"{task}/{line['doc_id']}"
            rows.append({"id": name, "group": name, **{metric: float(line[metric]) for metric in metrics}})
    return rows


def mean_metrics(tasks: Sequence[Any]) -> dict[str, bool]:
    """Return {metric: higher is better} of the metrics that all tasks have and that are means over their rows."""
    found = [
        {
            metric: bool(task.higher_is_better()[metric])
            for metric, aggregation in task.aggregation().items()
            if getattr(aggregation, "__name__", "") == _MEAN
        }
        for task in tasks
    ]
    return {metric: higher for metric, higher in found[0].items() if all(metric in own for own in found)}


def _checked(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a task, or why it cannot be run."""
    try:
        manager = _manager(entry)
        tasks = list(manager.load([entry["task"]])["tasks"].values())
    except KeyError:
        from tunesmith.core.suggest import did_you_mean

        known = _manager(entry).all_tasks
        return {"error": f"there is no task `{entry['task']}`", "hint": did_you_mean(entry["task"], known)}
    except Exception as error:  # of the harness, of `datasets`, or of code in the definition of the task
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        hint = "offline, its data must be in files that the task's definition names, or in the cache of `datasets`"
        return {"error": f"the task `{entry['task']}` or its data cannot be loaded ({reason})", "hint": hint}
    for task in tasks:
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            hint = "name a task of text whose answers are compared, not run"
            return {"error": f"the task `{task.task_name}` runs code of the model, or needs images", "hint": hint}
    metrics = mean_metrics(tasks)
    if entry["metric"] not in (None, *metrics) or not metrics:
        named = f"metric `{entry['metric']}`" if entry["metric"] else "metric"
        problem = f"the task `{entry['task']}` has no {named} that is a mean over its rows (in a group: of all tasks)"
        return {"error": problem, "hint": f"metrics of this kind: {', '.join(metrics) or 'none'}"}
    return {"metrics": metrics}


def _manager(entry: Mapping[str, Any]) -> Any:
    """Return the harness's index of tasks: those in `folder` if it has the task, else also the harness's own."""
    from lm_eval.tasks import TaskManager

    if entry["folder"] is not None:
        own = TaskManager(include_path=entry["folder"], include_defaults=False)
        if entry["task"] in own.all_tasks:
            return own
    return TaskManager(include_path=entry["folder"])


def _run(request: Mapping[str, Any], metrics: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the rows of base and tuned on each task."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from tunesmith.core.rundir import RunDir
    from tunesmith.evaluate.model_scores import open_to_ask
    from tunesmith.fetch.reference import resolve_base, resolve_tuned
    from tunesmith.model.load import compute_config
    from tunesmith.model.memory import free_memory
    from tunesmith.recipe.schema import Recipe
    from tunesmith.tasks.model_tokenizer import load_tokenizer

    recipe, run = Recipe.model_validate(request["recipe"]), RunDir(request["run"])
    models = {"base": resolve_base(run, recipe.model.base), "tuned": resolve_tuned(run)}
    tokenizer = load_tokenizer(models["base"], recipe.model)
    compute = compute_config(recipe)
    found: dict[str, Any] = {task["set_name"]: {} for task in request["tasks"]}
    for role, model in models.items():
        loaded = open_to_ask(recipe, model, tokenizer, compute, as_base=role == "base")
        harness = HFLM(pretrained=loaded, tokenizer=tokenizer.hf_tokenizer, batch_size=_BATCH_ROWS)
        for task in request["tasks"]:
            results = simple_evaluate(
                model=harness, tasks=[task["task"]], task_manager=_manager(task), limit=task["rows"],
                num_fewshot=task["fewshot"], apply_chat_template=task["chat_template"],
                fewshot_as_multiturn=task["chat_template"], bootstrap_iters=0,
            )  # fmt: skip
            found[task["set_name"]][role] = row_scores(results["samples"], metrics[task["set_name"]])
        del harness, loaded
        free_memory()
    return found


if __name__ == "__main__":
    main()
