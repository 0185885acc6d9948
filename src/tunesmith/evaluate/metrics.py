"""Scores of answers: one value a row, 0 to 1, higher is better.

A metric is one function and one row of `_METRICS`.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError

References = Sequence[Sequence[str]]  # any of a row's strings is right
Metric = Callable[[Sequence[str], References, Path | None], list[float]]

LIKELIHOOD = ("perplexity", "token_accuracy")  # of the reference under the model: computed where the model is
_GROUPS = {"rouge": ("rouge1", "rouge2", "rougeL", "rougeLsum")}
_ROUGE_N = re.compile(r"rouge[1-9]")


def score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    metrics: Sequence[str],
    *,
    database: Path | None = None,
) -> dict[str, list[float]]:
    """Score every prediction against its reference, or against the best of its references.

    Args:
        predictions: one answer a row; an empty one is scored like any other, which mostly gives 0.
        references: one string a row, or a list of strings any of which is right.
        metrics: names, `rouge` standing for four of them; see `METRIC_NAMES`.
        database: the SQLite file that `execution` runs queries on.

    Returns:
        {metric: [value per row]}, groups expanded, in the order they were asked for.

    Raises:
        RecipeError: a name is unknown or needs a model, or `execution` has no database.
        DataError: the lengths differ, or a row is not text.
    """
    names = expand(metrics)
    likelihood = [name for name in names if name in LIKELIHOOD]
    if likelihood:
        raise RecipeError(
            f"`{likelihood[0]}` cannot be computed from text",
            hint="it needs the model; name it in evaluate.metrics of a recipe",
        )
    rows = _checked(predictions, references)
    return {name: _metric(name)(predictions, rows, database) for name in names}


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Return metric names with groups replaced by their members, each once; raise RecipeError for an unknown one."""
    if isinstance(names, str):
        names = [names]
    members = [member for name in names for member in _GROUPS.get(name, (name,))]
    for name in members:
        if name not in METRIC_NAMES and name not in LIKELIHOOD and not _ROUGE_N.fullmatch(name):
            known = [*METRIC_NAMES, *_GROUPS, *LIKELIHOOD]
            spelt = {one.lower(): one for one in known}
            close = difflib.get_close_matches(name.lower(), spelt, n=1)
            raise RecipeError(
                f"unknown metric `{name}`" + (f", did you mean `{spelt[close[0]]}`?" if close else ""),
                hint=f"known are {', '.join(known)}, and rougeN up to rouge9",
            )
    return tuple(dict.fromkeys(members))


def exact_match(predictions: Sequence[str], references: References, _: Path | None = None) -> list[float]:
    """Return 1.0 where a prediction is a reference, white space around both left out."""
    return [
        float(prediction.strip() in [one.strip() for one in right])
        for prediction, right in zip(predictions, references, strict=True)
    ]


def rouge(kind: str) -> Metric:
    """Return ROUGE F1 (Lin 2004) of a kind: rouge1 to rouge9, rougeL, rougeLsum (sentences separated by newlines).

    As the package rouge-score counts it, without stemming. Its tokenizer keeps a-z and 0-9 alone: text in other
    scripts scores 0.
    """

    def values(predictions: Sequence[str], references: References, _: Path | None = None) -> list[float]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([kind], use_stemmer=False)
        return [
            max(float(scorer.score(one, prediction)[kind].fmeasure) for one in right)
            for prediction, right in zip(predictions, references, strict=True)
        ]

    return values


def execution(predictions: Sequence[str], references: References, database: Path | None) -> list[float]:
    """Return execution accuracy of SQL: see `execution_accuracy`."""
    from tunesmith.evaluate.execution import execution_accuracy

    if database is None:
        raise RecipeError("`execution` has no database", hint="give the SQLite file that queries run on")
    return execution_accuracy(predictions, references, database)


_METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "rouge1": rouge("rouge1"),
    "rouge2": rouge("rouge2"),
    "rougeL": rouge("rougeL"),
    "rougeLsum": rouge("rougeLsum"),
    "execution": execution,
}
METRIC_NAMES = tuple(_METRICS)


def _metric(name: str) -> Metric:
    return _METRICS[name] if name in _METRICS else rouge(name)


def _checked(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> References:
    """Return the references as lists; raise DataError unless each row has a text and at least one reference."""
    if isinstance(predictions, str) or isinstance(references, str):
        raise DataError("predictions and references are lists, not one text")
    if len(predictions) != len(references):
        raise DataError(
            f"{len(predictions)} predictions, but {len(references)} references", hint="there is one of each a row"
        )
    rows: list[list[Any]] = [list(some) if isinstance(some, (list, tuple)) else [some] for some in references]
    for index, (prediction, right) in enumerate(zip(predictions, rows, strict=True)):
        if not isinstance(prediction, str):
            raise DataError(f"is {prediction!r}, not text", where=f"predictions[{index}]", hint="no answer is ''")
        if not right or not all(isinstance(text, str) for text in right):
            raise DataError(
                f"is {references[index]!r}, not text or a list of texts",
                where=f"references[{index}]",
                hint="leave out rows that have no reference",
            )
    return rows
