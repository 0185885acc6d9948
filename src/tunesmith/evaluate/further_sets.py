"""Ask base and tuned about the further held-out sets of `evaluate.also`, and judge whether the tuned model got worse.

On each set, the guarded metric is compared as on the test rows, against the margin `-max_drop` (non-inferiority).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Guard, SetResult, Verdict
from tunesmith.data.dataset import PreparedRows
from tunesmith.data.prepare import prepare_sets
from tunesmith.distributed.process_group import current_group
from tunesmith.evaluate.compare import compare_models, guard_reason
from tunesmith.evaluate.model_outputs import response_stats
from tunesmith.evaluate.model_scores import FurtherRows, Outputs, TestRows, write_scores
from tunesmith.evaluate.replicates import tuned_scores
from tunesmith.inference.prompts import read_selected_rows
from tunesmith.inference.scorer import Scorer
from tunesmith.recipe.also import recipe_of_set
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.metrics import answer_metrics
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter

Sets = Mapping[str, tuple[TestRows, float]]
"""The rows of each set by name, and its `max_drop`."""


def read_sets(recipe: Recipe, run: RunDir, tokenizer: TokenizerAdapter) -> Sets:
    """Return the prepared rows of all sets, after preparing those that were added since. All ranks call this."""
    current_group().run_on_rank0(partial(prepare_sets, recipe, run, PreparedRows(run)))
    sets = {}
    for entry in recipe.evaluate.also:
        own, folder = recipe_of_set(recipe, entry), run.further_set(entry.name)
        examples, indices = read_selected_rows(folder, "test", entry.rows, recipe.seed)
        rows = TestRows.of(own, folder, examples, indices, task_for(own.data, tokenizer), tokenizer, unscored=0)
        sets[entry.name] = rows, entry.max_drop
    return sets


def further_rows(sets: Sets, run: RunDir, model: str) -> FurtherRows:
    """Return the rows of each set with the folder for the answers of a model."""
    return [(rows, run.set_evaluation(name, model)) for name, (rows, _) in sets.items()]


def judge_sets(verdict: Verdict, sets: Sets, run: RunDir, outputs: Mapping[str, Sequence[Outputs]]) -> Verdict:
    """Return the verdict with a guard for each set, and with the reasons of those that did not pass.

    Args:
        outputs: the outputs of each model, in the order of the sets.
    """
    for index, (name, (test, max_drop)) in enumerate(sets.items()):
        recipe = test.recipe
        scorer = Scorer(answer_metrics(recipe.evaluate.metrics), recipe, run.further_set(name), stage="evaluate")
        scores = {
            model: write_scores(run.set_evaluation(name, model), test.examples, outputs[model][index], scorer)
            for model in outputs
        }
        groups = [example.group for example in test.examples]
        lower = scorer.lower_is_better
        found = compare_models(
            recipe, scores["base"], *tuned_scores(recipe, scores), groups=groups, min_gain=-max_drop,
            lower_is_better=lower,
        )  # fmt: skip
        answered = outputs if test.prompts.examples else ()
        health = {model: response_stats(outputs[model][index][0]) for model in answered}
        result = SetResult(len(test.examples), found.metrics, health)
        verdict = with_set(verdict, result, Guard(found.primary, max_drop, name))
    return verdict


def with_set(verdict: Verdict, result: SetResult, guard: Guard) -> Verdict:
    """Return the verdict with the result on a further set, with its guard, and with the reason if that did not pass."""
    reasons = (*verdict.reasons, *(() if guard.passed else (guard_reason(guard),)))
    also = {**verdict.also, str(guard.set): result}
    return replace(verdict, guards=(*verdict.guards, guard), also=also, reasons=reasons)
