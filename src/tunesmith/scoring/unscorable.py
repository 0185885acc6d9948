"""Find references that a metric cannot score: even the reference itself would score 0."""

from collections.abc import Sequence

from tunesmith.core.errors import RecipeError
from tunesmith.scoring.metric import as_lists
from tunesmith.scoring.metrics import score
from tunesmith.scoring.rouge import is_rouge

MAX_UNSCORABLE_SHARE = 0.5
_MAX_CHARACTERS = 2_000  # of a reference; a text with words has one in its beginning


def unscorable_rows(metric: str, references: Sequence[str | Sequence[str]]) -> list[int]:
    """Return the rows on which a metric scores 0 for every answer, because it finds nothing to count in a reference.

    ROUGE counts words and n-grams of words, BLEU words, chrF characters. Other metrics distinguish any two texts.
    """
    if not (is_rouge(metric) or metric in ("bleu", "chrf")):
        return []
    rows = as_lists(references)
    best = [0.0] * len(rows)
    for index in range(max(map(len, rows), default=0)):
        pending = [row for row in range(len(rows)) if index < len(rows[row]) and best[row] == 0]
        texts = [rows[row][index][:_MAX_CHARACTERS] for row in pending]
        for row, value in zip(pending, score(texts, texts, [metric])[metric], strict=True):
            best[row] = value
    return [row for row, value in enumerate(best) if value == 0]


def unscorable_text(metric: str, unscorable: int, rows: int) -> str:
    """Return the warning that a metric cannot score some rows."""
    reason = "their references contain nothing that it counts"
    return f"`{metric}` scores 0 on {unscorable:,} of {rows:,} rows for every answer, because {reason}"


def check_scorable(
    metrics: Sequence[str], references: Sequence[str | Sequence[str]], *, primary: str, split: str
) -> list[str]:
    """Return a warning for each metric that cannot score some rows of a split.

    Raises:
        RecipeError: the primary metric cannot score more than half of the rows.
    """
    warnings = []
    for metric in metrics:
        if not (unscorable := len(unscorable_rows(metric, references))):
            continue
        text = f"{split}: {unscorable_text(metric, unscorable, len(references))}"
        if metric == primary and unscorable > MAX_UNSCORABLE_SHARE * len(references):
            where = "evaluate.primary" if split == "test" else "train.select_best_by"
            hint = "use `exact_match` or `chrf`, which compare characters instead of words"
            raise RecipeError(text, where=where, hint=hint, code="unscorable-references")
        warnings.append(text)
    return warnings
