"""Check before training that prompts leave room for an answer, and that metrics can score it."""

from collections.abc import Sequence

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Example
from tunesmith.core.verdict import MAX_FAILED_SHARE, too_many_failed
from tunesmith.inference.prompts import Prompts, build_prompts
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.metrics import answer_metrics
from tunesmith.scoring.unscorable import check_scorable
from tunesmith.tasks import task_for
from tunesmith.tasks.references import scored_reference
from tunesmith.tasks.tokenizer import TokenizerAdapter


def check_answerable(
    recipe: Recipe, tokenizer: TokenizerAdapter, examples: Sequence[Example], *, positions: int | None, split: str
) -> list[str]:
    """Return warnings about rows whose prompt leaves no room for an answer, or whose reference a metric cannot score.

    Args:
        positions: the model's maximum; None if it has none, or if it is unknown.

    Raises:
        RecipeError: too many rows are affected for a verdict.
    """
    task = task_for(recipe.data, tokenizer)
    warning = check_positions(build_prompts(examples, recipe, task, tokenizer), positions, split)
    names, primary = recipe.train.valid_metrics, recipe.train.select_best_by
    if split == "test":
        names, primary = recipe.evaluate.metrics, recipe.evaluate.primary
    references = [scored_reference(task, example) for example in examples]
    remarks = check_scorable(answer_metrics(names), references, primary=primary, split=split)
    return [warning, *remarks] if warning else remarks


def check_positions(prompts: Prompts, positions: int | None, split: str = "test") -> str | None:
    """Return a warning with the number of rows without room for an answer; None if there are none.

    Args:
        positions: the model's maximum; None if it has none, or if it is unknown.

    Raises:
        RecipeError: too few rows have room for an answer to compute a verdict.
    """
    if positions is None:
        return None
    total = len(prompts.examples)
    without = [i for i in range(total) if not prompts.fits(i, positions)]
    if not without:
        return None
    limit, longest = prompts.max_new_tokens, max(len(prompts.prompts[i]) for i in without)
    text = (
        f"{len(without):,} of {total:,} {split} rows leave no room for an answer: the model has {positions:,} "
        f"positions, their prompts have up to {longest:,} tokens, and max_new_tokens is {limit:,}"
    )
    if not too_many_failed(len(without), total):
        return f"{text}; the verdict leaves them out"
    room = positions if prompts.decoder_prefix_ids else positions - longest
    lower = f"lower it to {room:,} or less, " if 0 < room < limit else ""
    message = f"{text}; above {MAX_FAILED_SHARE:.0%} there is no verdict"
    hint = f"{lower}shorten the prompts, or use a model with more positions"
    raise RecipeError(message, where="evaluate.max_new_tokens", hint=hint, code="prompt-too-long")
