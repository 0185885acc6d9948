"""Check before training that rows have room for an answer, and that metrics can score it."""

from collections.abc import Sequence

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Example
from tunesmith.core.verdict import MAX_FAILED_SHARE, too_many_failed
from tunesmith.inference.prompts import Prompts, build_prompts
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.metrics import answer_metrics
from tunesmith.scoring.unscorable import check_scorable
from tunesmith.tasks.base import Task
from tunesmith.tasks.tokenizer import TokenizerAdapter


def check_answerable(
    recipe: Recipe,
    task: Task,
    tokenizer: TokenizerAdapter,
    examples: Sequence[Example],
    *,
    positions: int | None,
    split: str,
) -> list[str]:
    """Return warnings about rows that have no room for an answer, or whose references a metric cannot count.

    Args:
        positions: the model's maximum; None if it has none, or if it is unknown.

    Raises:
        RecipeError: so many rows are affected that there would be no verdict.
    """
    room = check_positions(build_prompts(examples, recipe, task, tokenizer), positions, split)
    names = recipe.evaluate.metrics if split == "test" else recipe.train.valid_metrics
    metrics = answer_metrics(names)
    primary = recipe.evaluate.primary if split == "test" else recipe.train.select_best_by
    references = [task.reference(example.turns) for example in examples]
    return [*([room] if room else []), *check_scorable(metrics, references, primary=primary, split=split)]


def check_positions(questions: Prompts, positions: int | None, split: str = "test") -> str | None:
    """Return a warning that counts the rows without room for an answer; None if there are none.

    Args:
        positions: the model's maximum; None if it has none, or if it is unknown.

    Raises:
        RecipeError: so many rows have no room that there would be no verdict.
    """
    if positions is None:
        return None
    total = len(questions.examples)
    without = [i for i in range(total) if not questions.fits(i, positions)]
    if not without:
        return None
    limit, longest = questions.max_new_tokens, max(len(questions.prompts[i]) for i in without)
    text = (
        f"{len(without):,} of {total:,} {split} rows have no room for an answer: the model knows {positions:,} "
        f"positions, their prompts have up to {longest:,} tokens, and an answer may have {limit:,}"
    )
    if not too_many_failed(len(without), total):
        return f"{text}; they are left out of the verdict"
    room = positions if questions.decoder_start_ids else positions - longest
    lower = f"lower it to {room:,} or less, or " if 0 < room < limit else ""
    raise RecipeError(
        f"{text}; above {MAX_FAILED_SHARE:.0%} there is no verdict",
        where="evaluate.max_new_tokens",
        hint=f"{lower}shorten the prompts or take a model with more positions",
    )
