"""The built-in metrics, and `score`, which computes metrics of answers: one value per row.

A built-in metric is a function, a row of `METRICS` and a row in docs/metrics.md. ROUGE is in `rouge.py`. Users' custom
metrics, with any range and direction, are in `custom.py`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.suggest import closest
from tunesmith.scoring.corpus import bleu, chrf
from tunesmith.scoring.custom import custom_metrics, is_custom
from tunesmith.scoring.json_metrics import json_field_f1, json_valid
from tunesmith.scoring.metric import Likelihood, Metric, References, Score
from tunesmith.scoring.rouge import ROUGE_NAMES, is_rouge, rouge
from tunesmith.scoring.tool_calls import tool_call, tool_call_f1, tool_call_name

# The direction of a metric of another tool, by the end of its name: `eval_loss`, `word_error_rate`.
_LOWER_IS_BETTER = frozenset({
    "perplexity", "ppl", "loss", "nll", "crossentropy", "wer", "cer", "mer", "ter", "errorrate", "error", "errors",
    "mae", "mse", "rmse", "mape", "bpb", "bpc", "bitsperbyte", "bitspercharacter", "editdistance", "levenshtein",
    "distance", "brier", "ece", "toxicity", "latency", "seconds",
})  # fmt: skip
_HIGHER_IS_BETTER = frozenset({
    "accuracy", "acc", "match", "em", "f", "precision", "recall", "rouge", "bleu", "sacrebleu", "chrf", "meteor",
    "bertscore", "comet", "bleurt", "auc", "auroc", "mrr", "ndcg", "pass", "passrate", "winrate", "successrate",
    "loglikelihood", "logprob", "score", "execution", "reward",
})  # fmt: skip
METRIC_GROUPS = {"rouge": ("rouge1", "rouge2", "rougeL", "rougeLsum")}


def score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    metrics: Sequence[str],
    *,
    database: Path | None = None,
    folder: Path | None = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, list[float]]:
    """Score each prediction against its reference, or against the best of its references.

    Args:
        predictions: one answer per row. An empty one is scored like any other, and mostly gets 0.
        references: one string per row, or a list of strings if a row has several right answers.
        metrics: names of metrics (`METRIC_NAMES`), `rouge` for four of them, or `module:function` for a custom metric.
        database: the SQLite file on which `execution` runs queries.
        folder: folder with the modules of custom metrics, searched after the installed packages.
        rows: the columns of each row, for custom metrics that take them.

    Returns:
        {metric: [value per row]} in the given order, with groups expanded.

    Raises:
        RecipeError: a metric is unknown or needs a model, `execution` has no database, or a custom metric fails.
        DataError: the lengths differ, or a row is not text.
    """
    names = expand_metrics(metrics)
    if needs_model := likelihood_metrics(names):
        hint = "it needs the model: add it to `evaluate.metrics` in a recipe"
        raise RecipeError(f"`{needs_model[0]}` cannot be computed from text", hint=hint, code="metric-needs-model")
    texts = _check_rows(predictions, references)
    custom = custom_metrics(names, folder)
    values = {}
    for name in names:
        if name in custom:
            values[name] = custom[name](predictions, references, rows)
        elif (metric := find_metric(name)) and metric.score:
            values[name] = metric.score(predictions, texts, database)
    return values


def expand_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct metrics, with groups replaced by their members; raise RecipeError for an unknown name."""
    if isinstance(names, str):
        names = [names]
    members = [member for name in names for member in METRIC_GROUPS.get(name, (name,))]
    known = [*METRIC_NAMES, *METRIC_GROUPS, *LIKELIHOOD_METRICS]
    by_letters = {_letters(name): name for name in known}
    for name in members:
        if find_metric(name) is None:
            near = closest(_letters(name), by_letters)
            if is_custom(name) and near != _letters(name):
                continue
            raise RecipeError(
                f"unknown metric `{name}`" + (f", did you mean `{by_letters[near]}`?" if near else ""),
                hint=f"known metrics: {', '.join(known)}, rougeN for any N, and your own functions such as "
                "`my_metrics:politeness`",
                code="unknown-metric",
            )
    return tuple(dict.fromkeys(members))


def answer_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics that are computed from answers; the name of a metric group is replaced by its members."""
    return expand_metrics([name for name in names if name not in LIKELIHOOD_METRICS])


def likelihood_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics that are computed from the likelihood of the references."""
    return tuple(name for name in names if name in LIKELIHOOD_METRICS)


def higher_is_better(name: str) -> bool | None:
    """Return whether a higher value of a metric is better, from its name; None if the name is unknown."""
    if metric := find_metric(name):
        return metric.higher_is_better
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    for first in range(len(words)):
        end = "".join(words[first:])
        if end in _LOWER_IS_BETTER or end in _HIGHER_IS_BETTER:
            return end in _HIGHER_IS_BETTER
    return None


def is_lower_better(name: str) -> bool:
    """Return whether lower values of a built-in metric are better. Custom metrics define `higher_is_better`."""
    metric = find_metric(name)
    return metric is not None and not metric.higher_is_better


def is_share(name: str) -> bool:
    """Return whether a metric is a built-in one with values from 0 to 1."""
    metric = find_metric(name)
    return metric is not None and metric.is_share


def share_hint(name: str, value: float) -> str:
    """Return the hint for a threshold that looks like percentage points although the metric is a share."""
    return f"`{name}` is a share from 0 to 1, and {value:g} is more; {value:g} points are {value / 100:g}"


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def exact_match(prediction: str, reference: str) -> float:
    """Return 1.0 if both texts are equal, ignoring whitespace around them, else 0.0."""
    return float(prediction.strip() == reference.strip())


def best_over_references(score_pair: Callable[[str, str], float]) -> Score:
    """Turn a score of (prediction, reference) into the score against the best of several references."""

    def values(predictions: Sequence[str], references: References, _: Path | None = None) -> list[float]:
        rows = zip(predictions, references, strict=True)
        return [max(score_pair(prediction, reference) for reference in texts) for prediction, texts in rows]

    return values


def execution(predictions: Sequence[str], references: References, database: Path | None) -> list[float]:
    """Return the execution accuracy of SQL (sql_execution.py)."""
    from tunesmith.scoring.sql_execution import execution_accuracy

    if database is None:
        hint = "give the SQLite file to run queries on: `evaluate.database` in a recipe, `--database` of `score`"
        raise RecipeError("`execution` has no database", hint=hint, code="no-database")
    return execution_accuracy(predictions, references, database)


def _loss(mean_log_likelihood: float) -> float:
    return -mean_log_likelihood


def _perplexity(mean_log_likelihood: float) -> float:
    return math.exp(-mean_log_likelihood)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact_match", "exact match", best_over_references(exact_match), one_is_right=True, is_binary=True),
        Metric("bleu", "BLEU", bleu),
        Metric("chrf", "chrF", chrf),
        Metric("execution", "execution accuracy", execution, one_is_right=True, is_binary=True),
        Metric("json_valid", "valid JSON", json_valid, one_is_right=True, is_binary=True),
        Metric("json_field_f1", "JSON field F1", json_field_f1, one_is_right=True),
        Metric("tool_call", "tool calls", tool_call, one_is_right=True, is_binary=True),
        Metric("tool_call_name", "tool names", tool_call_name, one_is_right=True, is_binary=True),
        Metric("tool_call_f1", "tool argument F1", tool_call_f1, one_is_right=True),
        Metric(
            "loss", "loss", likelihood=Likelihood("log_likelihood", _loss), higher_is_better=False, is_share=False,
            decimals=3,
        ),
        Metric(
            "perplexity", "perplexity", likelihood=Likelihood("log_likelihood", _perplexity),
            higher_is_better=False, is_share=False,
        ),
        Metric("token_accuracy", "token accuracy", likelihood=Likelihood("correct")),
    )
}  # fmt: skip
METRIC_NAMES = (*ROUGE_NAMES, *(name for name, metric in METRICS.items() if metric.score))
LIKELIHOOD_METRICS = tuple(name for name, metric in METRICS.items() if metric.likelihood)


def find_metric(name: str) -> Metric | None:
    """Return the built-in metric of this name; None for custom metrics and those of other tools."""
    if is_rouge(name):
        return Metric(name, f"ROUGE-{name.removeprefix('rouge')}", best_over_references(rouge(name)))
    return METRICS.get(name)


def _check_rows(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> References:
    """Return each row's references as a list; raise DataError unless every row has a prediction and a reference."""
    if isinstance(predictions, str) or isinstance(references, str):
        hint = "pass a list of predictions and a list of references"
        raise DataError("got one string instead of a list", hint=hint, code="not-text")
    if len(predictions) != len(references):
        message = f"there are {len(predictions)} predictions but {len(references)} references"
        raise DataError(message, hint="pass one prediction and one reference per row", code="unequal-lengths")
    rows: list[list[Any]] = [list(texts) if isinstance(texts, (list, tuple)) else [texts] for texts in references]
    for index, (prediction, texts) in enumerate(zip(predictions, rows, strict=True)):
        if not isinstance(prediction, str):
            raise DataError(
                f"is {prediction!r}, not text", where=f"predictions[{index}]", hint='use "" if missing', code="not-text"
            )
        if not texts or not all(isinstance(text, str) for text in texts):
            message, where = f"is {references[index]!r}, not text or a list of texts", f"references[{index}]"
            raise DataError(message, where=where, hint="leave out rows that have no reference", code="not-text")
    return rows
