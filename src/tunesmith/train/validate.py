"""Validation: measure the objective on valid rows, and compute metrics of answers generated for some of them.

The best checkpoint is selected by one of these values. The test split is never read.
"""

import math
import time
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from tunesmith.core.errors import NonFinite, RecipeError
from tunesmith.core.files import write_text
from tunesmith.core.interrupt import stop_when_requested
from tunesmith.core.jsonl import json_line, read_jsonl
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.data.sampler import select_validation_rows
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.distributed.fsdp import lockstep_forward
from tunesmith.inference.predict import predict
from tunesmith.inference.prompts import build_prompts, read_selected_rows
from tunesmith.inference.scorer import Scorer
from tunesmith.model.memory import free_memory
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter
from tunesmith.train.loop import Setup, measure


def is_better(value: float | None, best: float | None, *, higher: bool) -> bool:
    """Return whether a value is better than the best so far; of equal values the earlier one stays the best.

    A value that could not be measured (None) or is not finite is never better.
    """
    if value is None or not math.isfinite(value):
        return False
    return best is None or (value > best if higher else value < best)


class Validation:
    """Validates a run's model on the same valid rows and with the same prompts every time.

    Attributes:
        rows: the rows whose loss is measured.
        tokens, seconds: the totals of these measurements so far.
        higher_is_better: the direction of the value that selects the best checkpoint.

    Raises:
        RecipeError: a custom metric cannot be loaded.
        DataError: the database of `execution` does not exist.
    """

    def __init__(self, setup: Setup, run: RunDir, rows: TokenDataset, tokenizer: TokenizerAdapter) -> None:
        train = setup.recipe.train
        self._setup, self._dataset = setup, rows
        ids = [str(line["id"]) for line in read_jsonl(run.examples("valid"))]
        training = float(setup.tokens.lengths.sum()) * setup.plan.epochs
        self.rows = select_validation_rows(
            setup.recipe, ids, rows.lengths, validations=setup.plan.validations, training_tokens=training
        )
        if len(self.rows) < len(rows):
            selected = f"{len(self.rows):,} of {len(rows):,} valid rows, chosen by hash (train.valid_loss_rows)"
            log(f"each validation measures the loss on the same {selected}")
        self.tokens, self.seconds = 0, 0.0
        self._measures = {measure.name: measure for measure in setup.objective.measures}
        self._answers = _AnsweredRows(setup, run, tokenizer) if train.valid_metrics else None
        lower_is_better = [name for name, measure in self._measures.items() if not measure.higher_is_better]
        lower_is_better += self._answers.scorer.lower_is_better if self._answers else ()
        self.higher_is_better = train.select_best_by not in lower_is_better

    def measure(self, step: int, set_note: Callable[[str], None]) -> dict[str, float]:
        """Return the objective's measures, `tokens`, and the mean of each of `valid_metrics`; log them.

        Args:
            set_note: called with a text for the progress line.

        Raises:
            NonFinite: the loss or another measure of the objective became NaN or infinite.
            DoesNotFit: the loss of a single row does not fit in memory.
        """
        began, count = time.monotonic(), len(self.rows)
        values, trained = measure(
            self._setup, self._dataset, self.rows, lambda done: set_note(f"validating, {done} of {count} rows")
        )
        self.seconds += time.monotonic() - began
        self.tokens += int(self._dataset.lengths[self.rows].sum())
        for name, value in values.items():
            if not math.isfinite(value):
                message = f"the validation {self._measures[name].label} became {value}"
                hint = "lower train.learning_rate, or set model.precision to fp32; earlier checkpoints are kept"
                raise NonFinite(message, where=f"step {step}", hint=hint)
        means = self._answers.means(step) if self._answers else {}
        texts = [self._measures[name].format(value) for name, value in values.items()]
        texts += [f"{name} {value:.4f}" for name, value in means.items()]
        log(f"step {step}: validation {', '.join(texts)}")
        return {**values, "tokens": trained, **means}


def valid_rows(run: RunDir) -> TokenDataset | None:
    """Return the valid rows of a run, or None if there are none."""
    path = run.tokens("valid")
    rows = TokenDataset(path) if path.exists() else None
    return rows if rows is not None and len(rows) else None


class _AnsweredRows:
    """The valid rows for which answers are generated, and the metrics of these answers."""

    def __init__(self, setup: Setup, run: RunDir, tokenizer: TokenizerAdapter) -> None:
        recipe = setup.recipe
        self._setup, self._run = setup, run
        self._task = task_for(recipe.data, tokenizer)
        examples, _ = read_selected_rows(run, "valid", recipe.train.valid_rows, recipe.seed)
        self._prompts = build_prompts(examples, recipe, self._task, tokenizer)
        self.scorer = Scorer(recipe.train.valid_metrics, recipe, run, stage="train")

    def means(self, step: int) -> dict[str, float]:
        """Generate and store the answers; return the mean of each metric over the rows that have an answer."""
        lines = self._generate()
        return self._setup.group.run_on_rank0(lambda: self._score_and_store(step, lines))

    def _score_and_store(self, step: int, lines: Sequence[dict[str, Any]]) -> dict[str, float]:
        columns = {name: values for name in self.scorer.names if (values := self._scores(name, lines, step))}
        scored = [{**line, **{name: values[i] for name, values in columns.items()}} for i, line in enumerate(lines)]
        write_text(self._run.valid_answers(step), "".join(map(json_line, scored)))
        numbers = {name: [value for value in values if value is not None] for name, values in columns.items()}
        # `statistics.mean` computes exactly, so finite values of any size have a finite mean.
        return {name: mean(values) for name, values in numbers.items() if values}

    def _generate(self) -> list[dict[str, Any]]:
        """Return the answer to each prompt, in their order. A prompt for which memory runs out gets an error instead.

        Raises:
            Interrupted: any rank received a signal.
        """
        model, group, prompts = self._setup.model, self._setup.group, self._prompts.prompts
        local_prompts = group.local_rows(range(len(prompts)), [len(prompt) for prompt in prompts])
        with self._setup.compute.autocast(model.dtype), lockstep_forward(model, group):
            predictions = predict(model, self._prompts, self._task, local_prompts, continue_on_oom=True)
            local_lines = list(stop_when_requested(predictions))
        by_id = {line["id"]: line for lines in group.all_gather(local_lines) for line in lines}
        group.raise_if_interrupted()
        free_memory()  # return what generation used, before training continues
        failed = [line["error"] for line in by_id.values() if line["error"] is not None]
        if failed:
            log(f"{len(failed)} of {len(by_id)} valid rows have no answer and do not count in the means: {failed[0]}")
        return [by_id[example.id] for example in self._prompts.examples]

    def _scores(self, name: str, lines: Sequence[dict[str, Any]], step: int) -> list[float | None]:
        """Return a metric's value for each line; empty if a custom metric fails after step 0.

        Raises:
            RecipeError: a custom metric fails at step 0, before any training could be lost.
        """
        try:
            return self.scorer.score(name, lines)
        except RecipeError as error:
            if step == 0:  # no training is lost yet
                raise
            log(f"step {step}: {name} could not be computed and is ignored: {error}")
            return []
