"""Estimate the tokens and the time of a run's validations and of the answers of base and tuned."""

from dataclasses import dataclass
from statistics import mean

from tunesmith.core.progress import format_duration
from tunesmith.data.split import choose_by_hash
from tunesmith.data.used_rows import UsedRows
from tunesmith.data.validation import select_validation_rows
from tunesmith.estimate.throughput import Speed
from tunesmith.inference.prompts import UNSCORED_ANSWERS
from tunesmith.plan.scaling import ClusterEstimate
from tunesmith.recipe.schedule import StepPlan
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.metrics import answer_metrics, likelihood_metrics


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows, tokens and seconds of validation and evaluation.

    Attributes:
        validations: how often the valid rows are read.
        valid_rows: how many of them each validation measures the loss on, of `all_valid_rows`.
        valid_tokens: tokens that one validation reads.
        answered_valid_rows: how many valid rows each validation answers for `valid_metrics`.
        test_rows: how many test rows base and tuned answer.
        read_tokens: tokens of test rows that likelihood metrics read, by both models.
        written_tokens: tokens of all answers, if they are as long as the references, and at most.
        validating_seconds: for all validations, without answers; None if no speed is known.
        is_measured: whether validation was timed here in an earlier run; if not, its seconds are an upper bound, at the
            speed of training.
        answering_seconds: for `written_tokens`; None if this model has not answered on this machine yet.
    """

    validations: int
    valid_rows: int
    all_valid_rows: int
    valid_tokens: int
    answered_valid_rows: int
    test_rows: int
    read_tokens: int
    written_tokens: tuple[int, int]
    validating_seconds: float | None
    is_measured: bool
    answering_seconds: tuple[float, float] | None

    @property
    def all_valid_tokens(self) -> int:
        """Tokens that all validations read."""
        return self.validations * self.valid_tokens

    def tokens_text(self) -> str:
        """Return the tokens of validation and evaluation, as the end of plan's line `tokens`."""
        text = ""
        if self.valid_rows:
            text = f", {self.all_valid_tokens:,} to validate on ({self.validations} x {self.valid_tokens:,})"
        if self.valid_rows < self.all_valid_rows:
            text += f" of {self.valid_rows:,} of {self.all_valid_rows:,} valid rows, see train.valid_loss_rows"
        asked = f"{self.test_rows:,} test rows by base and tuned"
        if self.answered_valid_rows:
            asked += f", {self.answered_valid_rows:,} valid rows {self.validations} times"
        return f"{text}; {self.written_tokens[1]:,} to answer at most ({asked})"

    def time_text(self) -> str:
        """Return the time that they take, as the end of plan's line `time`."""
        text = ""
        if self.valid_rows:
            bound = "about" if self.is_measured else "at most about"
            known = self.validating_seconds is not None
            text = (
                f"; validation {bound} {format_duration(self.validating_seconds or 0)}"
                if known
                else "; validation unknown"
            )
        if self.answering_seconds is None:
            return f"{text}; answers unknown until this model has answered on this machine"
        low, high = map(format_duration, self.answering_seconds)
        return f"{text}; answers {low if low == high else f'{low} to {high}'}"


def estimate_workload(
    recipe: Recipe, rows: UsedRows, steps: StepPlan, seen: ClusterEstimate, speed: Speed | None
) -> Workload:
    """Return the work of a recipe's validations and evaluation, timed at the speeds measured on this machine."""
    train, evaluate = recipe.train, recipe.evaluate
    ids = {split: [str(line.id) for line in rows.ledger_entries(split)] for split in ("valid", "test")}
    lengths = {split: [line.tokens for line in rows.ledger_entries(split)] for split in ("valid", "test")}
    training = sum(line.tokens for line in rows.ledger_entries("train")) * steps.epochs
    valid = select_validation_rows(
        recipe, ids["valid"], lengths["valid"], validations=steps.validations, training_tokens=training
    )
    valid_tokens = sum(lengths["valid"][place] for place in valid)
    scored = answer_metrics(evaluate.metrics)
    chosen = choose_by_hash(ids["test"], evaluate.rows, recipe.seed)
    answered = min(len(set(ids["valid"])), train.valid_rows) if train.valid_metrics else 0
    asked = len(chosen) if scored else min(UNSCORED_ANSWERS, len(chosen))
    answers = 2 * asked + steps.validations * answered
    most = evaluate.max_new_tokens
    like = mean(min(most, line.trained) for line in rows.ledger_entries("test"))
    reads = likelihood_metrics(evaluate.metrics)
    tokens = {one: length for one, length in zip(ids["test"], lengths["test"], strict=True) if one in chosen}
    read = 2 * sum(tokens.values()) if reads else 0
    together = seen.together if speed is not None else None
    validating = answering = None
    if speed is not None and together is not None:
        rate = speed.reading * seen.processes if speed.reading else together[0]
        validating = steps.validations * valid_tokens / rate
        if speed.writing:
            each = speed.writing * seen.processes
            answering = answers * like / each + read / rate, answers * most / each + read / rate
    return Workload(
        validations=steps.validations, valid_rows=len(valid), all_valid_rows=len(ids["valid"]),
        valid_tokens=valid_tokens, answered_valid_rows=answered, test_rows=asked,
        read_tokens=read, written_tokens=(round(answers * like), answers * most), validating_seconds=validating,
        is_measured=bool(speed and speed.reading), answering_seconds=answering,
    )  # fmt: skip
