"""Turn the scores of base and tuned into the verdict: the primary metric decides, and guards can veto a promotion."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tunesmith.core.verdict import CorpusScores, Guard, Verdict
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.corpus import CORPUS_METRICS
from tunesmith.scoring.metric import as_lists
from tunesmith.scoring.metrics import answer_metrics, is_lower_better, likelihood_metrics
from tunesmith.scoring.row_scores import Scores, VerdictSettings, compare, compared_rows, group_changes
from tunesmith.scoring.samples import passes_of
from tunesmith.scoring.verdict import failed_text, needed_text, reasons_of

Answer = Mapping[str, Any]


def compare_models(
    recipe: Recipe,
    base: Scores,
    tuned: Scores,
    by_seed: Mapping[int, Scores] | None = None,
    *,
    groups: Sequence[str],
    min_gain: float,
    lower_is_better: Collection[str] = (),
) -> Verdict:
    """Compare base and tuned in all metrics; return the verdict without health, digests and conditions.

    Args:
        by_seed: the rows of each seed, if several were trained and `tuned` has their means.
        groups: the group of each row.
        min_gain: the gain in the primary metric that the interval must exceed.
        lower_is_better: custom metrics whose lower values are better. Gains are improvements in any direction.
    """
    settings = recipe.evaluate
    names = [*answer_metrics(settings.metrics), *likelihood_metrics(settings.metrics)]
    lower = {*(name for name in names if is_lower_better(name)), *lower_is_better}
    metrics = {}
    for name in [name for metric in names for name in (metric, *_passes(metric, base, tuned))]:
        is_primary = name == settings.primary
        limits = VerdictSettings(min_gain if is_primary else 0.0, settings.confidence, recipe.seed)
        metrics[name] = compare(
            name, base, tuned, lower_is_better=name in lower, settings=limits, groups=groups, by_row=is_primary,
            by_seed=by_seed,
        )  # fmt: skip
    primary = metrics[settings.primary]
    guards = tuple(Guard(metrics[guard.metric], guard.max_drop) for guard in settings.guards)
    grouping = None
    if primary.groups < primary.rows:
        lower_wins = not primary.higher_is_better
        grouping = group_changes(
            primary.metric, base, tuned, groups, by=recipe.data.split.by, lower_is_better=lower_wins
        )
    reasons = (*reasons_of(primary), *(guard_reason(guard) for guard in guards if not guard.passed))
    if settings.samples > 1:
        means = f"the score of a row is the mean of its {settings.samples} samples (mean@{settings.samples})"
        reasons += (f"{means}; the interval over rows covers the noise of sampling",)
    return Verdict(primary, metrics, guards, grouping, reasons)


def corpus_scores(metrics: Sequence[str], base: Sequence[Answer], tuned: Sequence[Answer]) -> dict[str, CorpusScores]:
    """Return the corpus scores of those metrics that have one, over the answers that both models gave.

    Args:
        base, tuned: lines of `generations.jsonl` in the same order.
    """
    pairs = [pair for pair in zip(base, tuned, strict=True) if not any(line["error"] for line in pair)]
    if not pairs:
        return {}
    references = as_lists([line["reference"] for line, _ in pairs])
    texts = [[line["prediction"] for line in answers] for answers in zip(*pairs, strict=True)]
    found = {}
    for name in metrics:
        if score := CORPUS_METRICS.get(name):
            before, after = (score(predictions, references) for predictions in texts)
            found[name] = CorpusScores(before.value, after.value, len(pairs), before.signature)
    return found


def _passes(metric: str, base: Scores, tuned: Scores) -> list[str]:
    """Return the names of the pass@k of a metric that all rows have which both models answered."""
    rows = compared_rows(metric, base, tuned)
    return passes_of(metric, *(side[row] for row in rows for side in (base, tuned)))


def guard_reason(guard: Guard) -> str:
    """Return why a guard did not pass: too many failed rows, or the drop that its interval allows.

    For a further held-out set it adds the rows that would settle it, if the drop is neither shown nor excluded.
    """
    change = guard.comparison
    if guard.set is not None and change.too_many_failed:
        return f"guard: {guard.name}: {failed_text(change)}"
    low, of_model = change.low, ""
    if change.own is not None and low >= -guard.max_drop:
        low, of_model = change.own.low, f" for the run's own model, of seed {change.own.seed}"
    limit = f"more than max_drop {guard.max_drop:g}"
    text = f"guard: {guard.name} may be worse by {-low:.4f}{of_model}, which is {limit}"
    needed = needed_text(change) if guard.set is not None else None
    return f"{text}; {needed}" if needed else text
