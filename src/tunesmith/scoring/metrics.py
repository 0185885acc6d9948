"""The metrics there are, and the scores of answers: one value a row.

A metric is one function, one row of `METRICS` and one of docs/metrics.md. ROUGE is in `rouge.py`; metrics of the
user's own, in any range and either direction, in `custom.py`.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.suggest import closest
from tunesmith.scoring.custom import custom_metrics, is_custom
from tunesmith.scoring.json_metrics import json_field_f1, json_valid
from tunesmith.scoring.metric import Likelihood, Metric, References, Score
from tunesmith.scoring.rouge import ROUGE_NAMES, is_rouge, rouge
from tunesmith.scoring.word_tokenizer import is_non_latin, space_words

# Which way metrics count, also those of other tools, by the end of their names: `eval_loss`, `word_error_rate`.
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
GROUPS = {"rouge": ("rouge1", "rouge2", "rougeL", "rougeLsum")}


def score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    metrics: Sequence[str],
    *,
    database: Path | None = None,
    folder: Path | None = None,
) -> dict[str, list[float]]:
    """Score every prediction against its reference, or against the best of its references.

    Args:
        predictions: one answer a row; an empty one is scored like any other, which mostly gives 0.
        references: one string a row, or a list of strings any of which is right.
        metrics: names, `rouge` standing for four of them (see `METRIC_NAMES`), and metrics of your own by dotted name.
        database: the SQLite file that `execution` runs queries on.
        folder: where modules of your own are, beside those that Python finds.

    Returns:
        {metric: [value per row]}, groups expanded, in the order they were asked for.

    Raises:
        RecipeError: a name is unknown or needs a model, `execution` has no database, or a metric of your own fails.
        DataError: the lengths differ, or a row is not text.
    """
    names = expand_metrics(metrics)
    likelihood = [name for name in names if name in LIKELIHOOD_METRICS]
    if likelihood:
        raise RecipeError(
            f"`{likelihood[0]}` cannot be computed from text",
            hint="it needs the model; name it in evaluate.metrics of a recipe",
        )
    rows = _check_rows(predictions, references)
    own = custom_metrics(names, folder)
    return {
        name: own[name](predictions, references) if name in own else _score_function(name)(predictions, rows, database)
        for name in names
    }


def expand_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Return metric names with groups replaced by their members, each once; raise RecipeError for an unknown one."""
    if isinstance(names, str):
        names = [names]
    members = [member for name in names for member in GROUPS.get(name, (name,))]
    for name in members:
        metric = find_metric(name)
        if metric is None or (metric.score is None and metric.likelihood is None):
            meant = _closest_name(name)
            if is_custom(name) and (meant is None or _letters(meant) != _letters(name)):
                continue
            raise RecipeError(
                f"unknown metric `{name}`" + (f", did you mean `{meant}`?" if meant else ""),
                hint=f"known are {', '.join(_known_names())}, rougeN for any N, and functions of your own such as "
                "`my_metrics:politeness`",
            )
    return tuple(dict.fromkeys(members))


def answer_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Return those metrics that are computed from answers, groups replaced by their members."""
    return expand_metrics([name for name in names if name not in (*LIKELIHOOD_METRICS, "loss")])


def likelihood_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Return those metrics that are computed from the likelihood of the references."""
    return tuple(name for name in names if name in LIKELIHOOD_METRICS)


def higher_is_better(name: str) -> bool | None:
    """Say whether a higher value of a metric is better, by its name; None if the name is not known."""
    if metric := find_metric(name):
        return metric.higher_is_better
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    for first in range(len(words)):
        end = "".join(words[first:])
        if end in _LOWER_IS_BETTER or end in _HIGHER_IS_BETTER:
            return end in _HIGHER_IS_BETTER
    return None


def is_lower_better(name: str) -> bool:
    """Say whether lower is better in a metric of ours; those of the user's own say so themselves."""
    metric = find_metric(name)
    return metric is not None and not metric.higher_is_better


def is_share(name: str) -> bool:
    """Say whether a metric is one of ours whose values are shares of 1."""
    metric = find_metric(name)
    return metric is not None and metric.is_share


def share_hint(name: str, value: float) -> str:
    """Say that a threshold of a share looks like points."""
    return f"`{name}` is a share from 0 to 1 and {value:g} was asked for; {value:g} points are {value / 100:g}"


def _known_names() -> list[str]:
    return [*METRIC_NAMES, *GROUPS, *LIKELIHOOD_METRICS]


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _closest_name(name: str) -> str | None:
    spelt = {_letters(one): one for one in _known_names()}
    near = closest(_letters(name), spelt)
    return spelt[near] if near else None


def exact_match(predictions: Sequence[str], references: References, _: Path | None = None) -> list[float]:
    """Return 1.0 where a prediction is a reference, white space around both left out."""
    return [
        float(prediction.strip() in [one.strip() for one in right])
        for prediction, right in zip(predictions, references, strict=True)
    ]


def best_over_references(one: Callable[[str, str], float]) -> Score:
    """Return a function that scores a prediction against the best of its references."""

    def values(predictions: Sequence[str], references: References, _: Path | None = None) -> list[float]:
        return [max(one(p, text) for text in right) for p, right in zip(predictions, references, strict=True)]

    return values


def bleu(predictions: Sequence[str], references: References, _: Path | None = None) -> list[float]:
    """Return BLEU (Papineni et al. 2002) of each row by sacrebleu, over the orders that both texts are long enough for.

    Several references count together, as in the article: an n-gram may be in any of them.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(effective_order=True)
    rows: list[tuple[str, list[str]]] = []
    for one, right in zip(predictions, references, strict=True):
        # Of scripts without spaces every character is a word, as sacrebleu's tokenizer `zh` has it.
        apart = any(is_non_latin(text) for text in right)
        rows.append((space_words(one), [space_words(text) for text in right]) if apart else (one, list(right)))
    return _sentence_scores(metric, [one for one, _ in rows], [right for _, right in rows])


def chrf(predictions: Sequence[str], references: References, _: Path | None = None) -> list[float]:
    """Return chrF2 (Popovic 2015) of each row by sacrebleu: F-score, recall twice, of up to 6 characters in a row."""
    from sacrebleu.metrics.chrf import CHRF

    return _sentence_scores(CHRF(), predictions, references)


def _sentence_scores(metric: Any, predictions: Sequence[str], references: References) -> list[float]:
    rows = zip(predictions, references, strict=True)
    return [min(1.0, metric.sentence_score(one, list(right)).score / 100) for one, right in rows]


def execution(predictions: Sequence[str], references: References, database: Path | None) -> list[float]:
    """Return execution accuracy of SQL: see `execution_accuracy`."""
    from tunesmith.scoring.sql_execution import execution_accuracy

    if database is None:
        raise RecipeError("`execution` has no database", hint="give the SQLite file that queries run on")
    return execution_accuracy(predictions, references, database)


def _perplexity(mean_log_likelihood: float) -> float:
    return math.exp(-mean_log_likelihood)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact_match", "exact match", exact_match),
        Metric("bleu", "BLEU", bleu),
        Metric("chrf", "chrF", chrf),
        Metric("execution", "execution accuracy", execution),
        Metric("json_valid", "valid JSON", lambda predictions, *_: json_valid(predictions)),
        Metric("json_field_f1", "JSON field F1", lambda answers, references, _: json_field_f1(answers, references)),
        Metric(
            "perplexity", "perplexity", likelihood=Likelihood("log_likelihood", _perplexity),
            higher_is_better=False, is_share=False,
        ),
        Metric("token_accuracy", "token accuracy", likelihood=Likelihood("correct")),
    )
}  # fmt: skip
METRIC_NAMES = (*ROUGE_NAMES, *(name for name, metric in METRICS.items() if metric.score))
LIKELIHOOD_METRICS = tuple(name for name, metric in METRICS.items() if metric.likelihood)
# Every validation measures it; no recipe asks for it.
_LOSS = Metric("loss", "loss", higher_is_better=False, is_share=False, decimals=3)


def find_metric(name: str) -> Metric | None:
    """Return a metric of ours, or the loss, by its name; None for those of the user's own and of other tools."""
    if is_rouge(name):
        return Metric(name, f"ROUGE-{name.removeprefix('rouge')}", best_over_references(rouge(name)))
    return _LOSS if name == _LOSS.name else METRICS.get(name)


def _score_function(name: str) -> Score:
    metric = find_metric(name)
    assert metric is not None and metric.score is not None  # `expand_metrics` knows it, and it needs no model
    return metric.score


def _check_rows(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> References:
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
