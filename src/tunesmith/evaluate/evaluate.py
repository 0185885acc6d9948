"""The stage `evaluate`: base and tuned answer the same test rows by the same code; their scores give the verdict.

With `replicates`, the models of all seeds answer them, too.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any

from tunesmith.core.errors import VerdictRefused
from tunesmith.core.files import seal_folder, write_json
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.distributed.process_group import current_group
from tunesmith.evaluate.compare import compare_models, corpus_scores
from tunesmith.evaluate.further_sets import further_rows, judge_sets, read_sets
from tunesmith.evaluate.harness import judge_tasks, run_tasks
from tunesmith.evaluate.incumbent import find_incumbent
from tunesmith.evaluate.incumbent_verdict import IncumbentComparison
from tunesmith.evaluate.inputs import inputs
from tunesmith.evaluate.model_outputs import response_stats
from tunesmith.evaluate.model_scores import TestRows, evaluation_conditions, run_model, write_scores
from tunesmith.evaluate.replicates import replicate_models, tuned_scores
from tunesmith.fetch.reference import resolve_base, resolve_tuned
from tunesmith.inference.prompts import read_selected_rows
from tunesmith.inference.scorer import Scorer
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.metrics import answer_metrics
from tunesmith.tasks import task_for
from tunesmith.tasks.model_tokenizer import load_tokenizer


def evaluate(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Compare base and tuned on the test rows, write `verdict.json`, and return the manifest.

    If the recipe promotes, the version that would be replaced answers the rows, too; `promote` reads the result.
    Ranks share the rows. Rank 0 scores the answers of all ranks and writes the files; other ranks return {}.
    """
    began = time.monotonic()
    stage_inputs, group = inputs(recipe, run), current_group()
    group.require_equal(stage_inputs)
    models = {"base": resolve_base(run, recipe.model.base), "tuned": resolve_tuned(run)}
    models |= replicate_models(recipe, run)
    tokenizer = load_tokenizer(models["base"], recipe.model)
    task = task_for(recipe.data, tokenizer)
    scorer = Scorer(answer_metrics(recipe.evaluate.metrics), recipe, run, stage="evaluate")
    examples, indices = read_selected_rows(run, "test", recipe.evaluate.rows, recipe.seed)
    test = TestRows.of(recipe, run, examples, indices, task, tokenizer)
    sets = read_sets(recipe, run, tokenizer)
    # Run all models before scoring, because only rank 0 scores, and the other ranks would wait for it.
    asked_models = {
        name: run_model(name, model, test, run.evaluation(name), further_rows(sets, run, name), as_base=name == "base")
        for name, model in models.items()
    }
    incumbent = _ask_incumbent(recipe, run, models["tuned"].digest())
    harness = group.run_on_rank0(partial(run_tasks, recipe, run))
    if not group.is_rank0:
        return {}
    outputs = {name: asked_model[0] for name, asked_model in asked_models.items()}
    scores = {name: write_scores(run.evaluation(name), examples, output, scorer) for name, output in outputs.items()}
    verdict = compare_models(
        recipe, scores["base"], *tuned_scores(recipe, scores), groups=[example.group for example in examples],
        min_gain=recipe.min_gain, lower_is_better=scorer.lower_is_better,
    )  # fmt: skip
    conditions, reasons = evaluation_conditions(recipe), verdict.reasons
    if quantization := conditions["quantization"]:
        reasons += (f"base and tuned were both evaluated with weights in {quantization}",)
    stats = {name: response_stats(answers) for name, (answers, _) in outputs.items()}
    digests = {"questions": test.prompts.digest, **{name: model.digest() for name, model in models.items()}}
    corpus = corpus_scores(scorer.names, *(outputs[name][0] for name in ("base", "tuned")))
    verdict = replace(verdict, reasons=reasons, corpus=corpus, health=stats, digests=digests, conditions=conditions)
    verdict = judge_sets(verdict, sets, run, {name: further for name, (_, *further) in asked_models.items()})
    verdict = judge_tasks(verdict, recipe, harness)
    write_json(run.verdict, verdict.to_json())
    seconds, outcome = round(time.monotonic() - began, 3), verdict.primary.verdict
    manifest = seal_folder(
        run.stage("evaluate"), stage="evaluate", inputs=stage_inputs, seconds=seconds, verdict=outcome
    )
    if incumbent is not None:
        incumbent.judge()
    return manifest


def _ask_incumbent(recipe: Recipe, run: RunDir, tuned: str) -> IncumbentComparison | None:
    """Let the version answer that a promotion would replace; return None if there is none, or if it cannot."""
    version = current_group().run_on_rank0(partial(find_incumbent, recipe, tuned))
    if version is None:
        return None
    try:
        comparison = IncumbentComparison(recipe, run, version)
        comparison.ask()
    except VerdictRefused as refusal:  # the verdict on the base stands; `promote` refuses
        log(f"warning: {refusal}")
        return None
    return comparison
