"""Estimate the tokens and the time of a run's validations and of its evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from tunesmith.data.dataset import UsedRows
from tunesmith.data.sampler import select_validation_rows
from tunesmith.data.split import choose_by_hash
from tunesmith.estimate.throughput import Speed
from tunesmith.evaluate.incumbent import IncumbentCheck
from tunesmith.inference.prompts import UNSCORED_ANSWERS
from tunesmith.plan.scaling import ClusterEstimate
from tunesmith.recipe.schedule import StepPlan
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.metrics import answer_metrics, likelihood_metrics


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows, tokens and seconds of validation and evaluation.

    Attributes:
        validations: number of validations.
        valid_rows: number of rows on which each validation measures the loss, of `all_valid_rows`.
        valid_tokens: tokens that each validation reads.
        answered_valid_rows: number of rows that each validation answers for `train.valid_metrics`.
        test_rows: number of test rows that base and tuned answer, with `replicates` the tuned model of each seed.
        incumbent: the version of the registry that answers the test rows, too; None if none does.
        read_tokens: tokens of test rows that all models read for likelihood metrics.
        generated_tokens: number of tokens of all answers: if they are as long as the references, and the maximum.
        validation_seconds: time of all validations without generating answers; None if no speed is known.
        is_measured: whether an earlier run on this machine measured the speed of validation; otherwise
            `validation_seconds` is an upper bound, at the speed of training.
        generation_seconds: time to generate `generated_tokens`; None if this model has never generated on this machine.
        seeds: number of seeds that are trained; validations, tokens and seconds are those of all of them.
    """

    validations: int
    valid_rows: int
    all_valid_rows: int
    valid_tokens: int
    answered_valid_rows: int
    test_rows: int
    incumbent: str | None
    read_tokens: int
    generated_tokens: tuple[int, int]
    validation_seconds: float | None
    is_measured: bool
    generation_seconds: tuple[float, float] | None
    seeds: int = 1

    @property
    def all_valid_tokens(self) -> int:
        """Tokens that all validations read."""
        return self.validations * self.valid_tokens


def estimate_workload(
    recipe: Recipe,
    rows: UsedRows,
    sets: Sequence[tuple[Recipe, UsedRows]],
    incumbent: IncumbentCheck | None,
    steps: StepPlan,
    cluster: ClusterEstimate,
    speed: Speed | None,
) -> Workload:
    """Estimate the validations and the evaluation of a recipe, at the speeds measured on this machine.

    Args:
        sets: the rows of further held-out sets, and the set as a recipe.
        incumbent: the version that a promotion would replace; it is not asked about the further sets.
    """
    train, seeds = recipe.train, recipe.replicates or 1
    validations, models = seeds * steps.validations, 1 + seeds
    valid_ids = [str(entry.id) for entry in rows.ledger_entries("valid")]
    lengths = [entry.tokens for entry in rows.ledger_entries("valid")]
    tokens = sum(entry.tokens for entry in rows.ledger_entries("train")) * steps.epochs
    valid = select_validation_rows(recipe, valid_ids, lengths, validations=steps.validations, training_tokens=tokens)
    valid_tokens = sum(lengths[place] for place in valid)
    answered_valid_rows = min(len(set(valid_ids)), train.valid_rows) if train.valid_metrics else 0
    own = _evaluation(recipe, rows, unscored=UNSCORED_ANSWERS)
    further = [_evaluation(set_recipe, set_rows, unscored=0) for set_recipe, set_rows in sets]
    valid_answers = validations * answered_valid_rows
    asked = incumbent.version if incumbent is not None and incumbent.is_asked else None
    parts = [(models + (1 if asked else 0), own), *((models, part) for part in further)]
    expected = valid_answers * own.expected + sum(count * part.answers * part.expected for count, part in parts)
    at_most = valid_answers * own.limit + sum(count * part.answers * part.limit for count, part in parts)
    read_tokens = sum(count * part.read_tokens for count, part in parts)
    validation = generation = None
    if speed is not None and cluster.total_tokens_per_second is not None:
        reading = speed.reading * cluster.processes if speed.reading else cluster.total_tokens_per_second[0]
        validation = validations * valid_tokens / reading
        if speed.writing:
            writing = speed.writing * cluster.processes
            reading_seconds = read_tokens / reading
            generation = expected / writing + reading_seconds, at_most / writing + reading_seconds
    return Workload(
        validations=validations, valid_rows=len(valid), all_valid_rows=len(valid_ids),
        valid_tokens=valid_tokens, answered_valid_rows=answered_valid_rows, test_rows=own.rows, incumbent=asked,
        read_tokens=read_tokens, generated_tokens=(round(expected), at_most),
        validation_seconds=validation, is_measured=bool(speed and speed.reading), generation_seconds=generation,
        seeds=seeds,
    )  # fmt: skip


class _Evaluation(NamedTuple):
    """What one model does: answered rows, answers, tokens of each (as the reference, and at most), tokens read."""

    rows: int
    answers: int
    expected: float
    limit: int
    read_tokens: int


def _evaluation(recipe: Recipe, rows: UsedRows, *, unscored: int) -> _Evaluation:
    """Return what one model writes and reads; without metrics of answers it writes `unscored`."""
    settings, entries = recipe.evaluate, rows.ledger_entries("test")
    lengths = {str(entry.id): entry.tokens for entry in entries}
    chosen = choose_by_hash(lengths, settings.rows, recipe.seed)
    answers = len(chosen) if answer_metrics(settings.metrics) else min(unscored, len(chosen))
    expected = mean(min(settings.max_new_tokens, entry.trained) for entry in entries)
    read = sum(lengths[row_id] for row_id in chosen) if likelihood_metrics(settings.metrics) else 0
    return _Evaluation(answers, answers * settings.samples, expected, settings.max_new_tokens, read)
