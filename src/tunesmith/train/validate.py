"""What a validation finds: loss and token accuracy of valid rows, and metrics of the answers to some of them.

The rows are those of the valid split; the test split is not opened.
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
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.data.validation import select_validation_rows
from tunesmith.distributed.fsdp import lockstep_forward
from tunesmith.inference.predict import predict
from tunesmith.inference.prompts import Prompts, build_prompts, read_selected_rows
from tunesmith.inference.scorer import Scorer
from tunesmith.model.memory import free_memory
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.tokenizer import TokenizerAdapter
from tunesmith.train.choice import BestCheckpoint
from tunesmith.train.loop import Setup, measure


class Validation:
    """Measures a run's model on its valid rows: the same rows, asked the same, every time.

    `rows` are those whose loss is measured; `tokens` and `seconds` add up what that has read and taken so far.

    Raises:
        RecipeError: a metric of the user's own cannot be had.
        DataError: the database of `execution` is not there.
    """

    def __init__(self, setup: Setup, run: RunDir, rows: TokenDataset, tokenizer: TokenizerAdapter) -> None:
        train = setup.recipe.train
        self._setup, self._tokens = setup, rows
        ids = [str(line["id"]) for line in read_jsonl(run.examples("valid"))]
        training = float(setup.tokens.lengths.sum()) * setup.plan.epochs
        self.rows = select_validation_rows(
            setup.recipe, ids, rows.lengths, validations=setup.plan.validations, training_tokens=training
        )
        self.tokens, self.seconds = 0, 0.0
        self._measures = {measure.name: measure for measure in setup.objective.measures}
        self._asked = _Asked(setup, run, tokenizer) if train.valid_metrics else None
        self.choice = BestCheckpoint(
            train.select_best_by, higher_is_better=self._is_higher_better(train.select_best_by)
        )

    def _is_higher_better(self, name: str) -> bool:
        if name in self._measures:
            return self._measures[name].higher_is_better
        return self._asked is None or name not in self._asked.scorer.lower_is_better

    def measure(self, step: int, doing: Callable[[str], None]) -> dict[str, float]:
        """Return what the objective measures, `tokens`, and the mean of each of `valid_metrics`; log them.

        Args:
            doing: told what is being done, for whoever watches.

        Raises:
            NonFinite: the loss, or whatever the objective measures, became NaN or infinite.
            DoesNotFit: memory does not suffice for the loss of a single row.
        """
        began, count = time.monotonic(), len(self.rows)
        found = measure(
            self._setup, self._tokens, self.rows, seen=lambda done: doing(f"validating, {done} of {count} rows")
        )
        self.seconds += time.monotonic() - began
        self.tokens += int(self._tokens.lengths[self.rows].sum())
        for name, value in found.values.items():
            if not math.isfinite(value):
                raise NonFinite(
                    f"the validation {self._measures[name].label} became {value}",
                    where=f"step {step}",
                    hint="lower train.learning_rate, or set model.precision to fp32; earlier checkpoints are kept",
                )
        means = self._asked.means(step) if self._asked else {}
        texts = [self._measures[name].format(value) for name, value in found.values.items()]
        texts += [f"{name} {value:.4f}" for name, value in means.items()]
        log(f"step {step}: validation {', '.join(texts)}")
        return {**found.values, "tokens": found.tokens, **means}


def valid_rows(run: RunDir) -> TokenDataset | None:
    """Return the valid rows of a run, or None where there are none."""
    path = run.tokens("valid")
    rows = TokenDataset(path) if path.exists() else None
    return rows if rows is not None and len(rows) else None


class _Asked:
    """The valid rows that are answered, and the metrics of their answers."""

    def __init__(self, setup: Setup, run: RunDir, tokenizer: TokenizerAdapter) -> None:
        recipe = setup.recipe
        self._setup, self._run = setup, run
        self._task: Task = task_for(recipe.data, tokenizer)
        examples, _ = read_selected_rows(run, "valid", recipe.train.valid_rows, recipe.seed)
        self._questions: Prompts = build_prompts(examples, recipe, self._task, tokenizer)
        self.scorer = Scorer(recipe.train.valid_metrics, recipe, run, stage="train")

    def means(self, step: int) -> dict[str, float]:
        """Answer the rows and keep the answers; return the mean of each metric over those that did not fail."""
        lines = self._answers()
        return self._setup.group.run_on_rank0(lambda: self._scored(step, lines))

    def _scored(self, step: int, lines: Sequence[dict[str, Any]]) -> dict[str, float]:
        columns = {name: values for name in self.scorer.names if (values := self._scores(name, lines, step))}
        scored = [{**line, **{name: values[i] for name, values in columns.items()}} for i, line in enumerate(lines)]
        write_text(self._run.valid_answers(step), "".join(map(json_line, scored)))
        answered = {name: [value for value in values if value is not None] for name, values in columns.items()}
        # Exact: finite values have a finite mean, however large they are.
        return {name: mean(values) for name, values in answered.items() if values}

    def _answers(self) -> list[dict[str, Any]]:
        """Return the answer to every question, in their order. What memory does not suffice for has failed.

        Raises:
            Interrupted: a signal came to any process.
        """
        model, group, prompts = self._setup.model, self._setup.group, self._questions.prompts
        mine = group.local_rows(range(len(prompts)), [len(prompt) for prompt in prompts])
        with self._setup.compute.autocast(model.dtype), lockstep_forward(model, group):
            found = list(stop_when_requested(predict(model, self._questions, self._task, mine, continue_on_oom=True)))
        made = {line["id"]: line for lines in group.all_gather(found) for line in lines}
        group.raise_if_interrupted()
        free_memory()  # training is to find what it had before
        failed = [line["error"] for line in made.values() if line["error"] is not None]
        if failed:
            log(f"{len(failed)} of {len(made)} valid rows have no answer and are left out of the means: {failed[0]}")
        return [made[example.id] for example in self._questions.examples]

    def _scores(self, name: str, lines: Sequence[dict[str, Any]], step: int) -> list[float | None]:
        """Return a metric's value of every line; none where a metric of the user's own fails in the middle of a run."""
        try:
            return self.scorer.score(name, lines)
        except RecipeError as error:
            if step == 0:  # nothing is lost yet
                raise
            log(f"step {step}: {name} could not be computed and does not count: {error}")
            return []
