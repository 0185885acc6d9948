"""Find references in which a metric has nothing to count: even the reference itself would score 0."""

from collections.abc import Sequence

from tunesmith.core.errors import RecipeError
from tunesmith.scoring.metrics import score
from tunesmith.scoring.rouge import is_rouge

MAX_UNSCORABLE_SHARE = 0.5
_READ = 2_000  # characters of a reference that are looked at; a text with words has one early


def unscorable_rows(metric: str, references: Sequence[str | Sequence[str]]) -> list[int]:
    """Return the rows on which a metric scores 0 whatever the answer is, because it can count nothing in a reference.

    ROUGE counts words and runs of words, BLEU words, chrF characters. Other metrics can tell any two texts apart.
    """
    if not (is_rouge(metric) or metric in ("bleu", "chrf")):
        return []
    rows = [[one] if isinstance(one, str) else list(one) for one in references]
    best = [0.0] * len(rows)
    for place in range(max(map(len, rows), default=0)):
        some = [row for row in range(len(rows)) if place < len(rows[row]) and best[row] == 0]
        texts = [rows[row][place][:_READ] for row in some]
        for row, value in zip(some, score(texts, texts, [metric])[metric], strict=True):
            best[row] = value
    return [row for row, value in enumerate(best) if value == 0]


def unscorable_text(metric: str, blind: int, rows: int) -> str:
    """Say on how many rows a metric is blind."""
    counted = "their references have nothing that it counts"
    return f"`{metric}` scores 0 on {blind:,} of {rows:,} rows whatever the answer: {counted}"


def check_scorable(metrics: Sequence[str], references: Sequence[str], *, primary: str, split: str) -> list[str]:
    """Return a warning for every metric that is blind on some rows of a split.

    Raises:
        RecipeError: the metric that decides is blind on more than half of the rows.
    """
    found = []
    for metric in metrics:
        if not (blind := len(unscorable_rows(metric, references))):
            continue
        text = f"{split}: {unscorable_text(metric, blind, len(references))}"
        if metric == primary and blind > MAX_UNSCORABLE_SHARE * len(references):
            hint = "let `exact_match` or `chrf` decide, which compare characters and not words"
            raise RecipeError(text, where="evaluate.primary" if split == "test" else "train.select_best_by", hint=hint)
        found.append(text)
    return found
