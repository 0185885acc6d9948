"""Whether a model has room for answers: if its positions do not hold a prompt and `max_new_tokens`, the row fails."""

from tunesmith.answering.questions import Questions
from tunesmith.core.errors import RecipeError
from tunesmith.scoring.row_scores import MOST_FAILED, too_many_failed


def check_room(questions: Questions, positions: int | None, split: str = "test") -> str | None:
    """Return a warning that names how many rows have no room for an answer; None if all have.

    Args:
        positions: how many the model knows; None if it has no limit, or if that is not known.

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
    told = (
        f"{len(without):,} of {total:,} {split} rows have no room for an answer: the model knows {positions:,} "
        f"positions, their prompts have up to {longest:,} tokens, and an answer may have {limit:,}"
    )
    if not too_many_failed(len(without), total):
        return f"{told}; they are left out of the verdict"
    room = positions if questions.opening else positions - longest
    lower = f"lower it to {room:,} or less, or " if 0 < room < limit else ""
    raise RecipeError(
        f"{told}; above {MOST_FAILED:.0%} there is no verdict",
        where="evaluate.max_new_tokens",
        hint=f"{lower}shorten the prompts or take a model with more positions",
    )
