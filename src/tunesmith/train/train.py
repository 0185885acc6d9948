"""The stage `train`: run the training loop, log, validate and save checkpoints, and write the manifest last.

With several ranks, each runs this code, and only rank 0 writes.
"""

import os
import threading
import time
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from tunesmith.core import interrupt
from tunesmith.core.errors import Interrupted, ProcessLost
from tunesmith.core.files import digest_of, seal_folder, translate_enospc, write_text
from tunesmith.core.jsonl import json_line, read_whole_lines
from tunesmith.core.progress import Progress, log
from tunesmith.core.records import StepReport
from tunesmith.core.rundir import RunDir
from tunesmith.distributed.process_group import cores_per_rank, current_group, peer_failures_as_errors
from tunesmith.estimate.throughput import Speed, save_speed, speed_key
from tunesmith.fetch.reference import ModelFolder, base_card, resolve_base
from tunesmith.model.quantization import quantization_of
from tunesmith.model.trainable import count_parameters
from tunesmith.objectives.base import Objective
from tunesmith.objectives.sft import SFT
from tunesmith.recipe.data_record import dump_data
from tunesmith.recipe.model import tokens_to_add
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.train.async_save import AsyncSaver
from tunesmith.train.checkpoint import ModelOrigin, State, latest_state, restore
from tunesmith.train.crash_loop import record_attempt
from tunesmith.train.inputs import inputs
from tunesmith.train.loop import Setup, train_steps
from tunesmith.train.optim import make_optimizer, updated_share
from tunesmith.train.resource_monitor import monitor_resources, peak_memory_gib
from tunesmith.train.setup import build_setup
from tunesmith.train.stop_early import count_validation, stop_reason
from tunesmith.train.validate import Validation, is_better, valid_rows


def train(recipe: Recipe, run: RunDir, objective: Objective = SFT) -> dict[str, Any]:
    """Train the recipe's model on the prepared rows of `run`; resume from the last checkpoint if there is one.

    Returns:
        The stage's manifest.

    Raises:
        RecipeError: rows are longer than the model can read, or the model is not causal.
        DoesNotFit: there is too little memory, or the disk is full; the last checkpoint is complete.
        NonFinite: loss or gradient became NaN or infinite.
        Interrupted: a signal was received; a checkpoint of the last finished step is kept.
    """
    stage_inputs, group = inputs(recipe, run), current_group()
    if objective is not SFT:
        stage_inputs["objective"] = objective.name
    group.require_equal(stage_inputs)
    saved_state = group.run_on_rank0(lambda: latest_state(recipe, run, stage_inputs))
    state = replace(saved_state, inputs=stage_inputs) if saved_state else State(0, stage_inputs)
    base = resolve_base(run, recipe.model.base)
    tokenizer = load_tokenizer(base, recipe.model)
    with peer_failures_as_errors():
        setup = build_setup(recipe, run, base, tokenizer, objective)
        setup = replace(setup, loss_scale=state.loss_scale or setup.loss_scale)
        optimizer = make_optimizer(setup.model, recipe.train)
        if state.step:
            restore(run, state, setup.model, optimizer)
    if state.step:
        log(f"resuming from step {state.step} of {setup.plan.total_steps}")
    origin = ModelOrigin(base, tokenizer, _card(recipe, run, base, stage_inputs))
    training = TrainingRun(run, setup, optimizer, state, origin)
    try:
        # Only from here on: a process killed while it loads has not attempted a step.
        with (
            record_attempt(setup, run, first_step=state.step),
            interrupt.defer_signals() if group.is_distributed else nullcontext(),
        ):
            training.run_steps()
    except Interrupted as error:
        if not isinstance(error, ProcessLost):
            group.barrier()  # until the checkpoint is complete: the launcher may kill all ranks when one exits
        raise
    return training.finish(stage_inputs)


def _card(recipe: Recipe, run: RunDir, base: ModelFolder, stage_inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that a saved model needs to be used as it was trained."""
    quantization = quantization_of(recipe)
    return {
        **base_card(base, run.checkpoint(0) / "model"),
        "data": dump_data(recipe.data),
        "quantization": quantization.model_dump(mode="json") if quantization else None,
        "chat_markup": recipe.model.chat_markup,
        "added_tokens": [*base.added_tokens, *tokens_to_add(recipe.model)],
        "precision": recipe.model.precision,
        "inputs": digest_of(stage_inputs),
        "name": recipe.name,
    }


@dataclass
class TrainingRun:
    """The training of one run on one rank, from its current state until the end, a signal or an error."""

    run: RunDir
    setup: Setup
    optimizer: torch.optim.Optimizer
    state: State
    origin: ModelOrigin

    def __post_init__(self) -> None:
        self._first_state, self._update_seconds = self.state, 0.0
        self._log_lock = threading.Lock()  # the resource monitor logs from its thread
        self._saver = AsyncSaver(self.setup, self.run, self.optimizer, self.origin)
        rows = valid_rows(self.run)
        self._validation = Validation(self.setup, self.run, rows, self.origin.tokenizer) if rows is not None else None

    def run_steps(self) -> None:
        """Take the remaining steps; log, validate and save when due, and stop early if the recipe asks for it."""
        plan = self.setup.plan
        metrics = self.run.metrics if self.setup.group.is_rank0 else Path(os.devnull)
        if self.setup.group.is_rank0:
            self._discard_after(self.state.step)
        saved_step = self.state.step
        with (
            translate_enospc(metrics),
            metrics.open("a", encoding="utf-8") as file,
            monitor_resources(
                lambda sample: self.log_line(file, {"kind": "machine", "step": self.state.step, **sample}),
                self.setup.compute.device,
            ),
            self._saver.finish_on_exit(),
        ):
            # Before the first step, and after a resume if a signal prevented a validation that was due.
            if self._is_due(plan.valid_every_steps) and self.state.validated_step != self.state.step:
                with closing(Progress("train", total=plan.total_steps, start=self.state.step)) as progress:
                    self._validate(file, progress)
            progress = Progress("train", total=plan.total_steps, start=self.state.step)
            step_began = time.monotonic()
            try:
                steps = train_steps(self.setup, self.optimizer, first_step=self.state.step)
                for report in () if self._stop_reason else steps:
                    seconds, step_began = time.monotonic() - step_began, time.monotonic()
                    self.state = replace(
                        self.state,
                        step=report.step,
                        tokens=self.state.tokens + report.tokens,
                        loss_scale=report.loss_scale,
                        seconds=round(self.state.seconds + seconds, 3),
                    )
                    self._update_seconds += report.update_seconds or 0.0
                    self.log_line(file, _step_line(report, seconds))
                    self._saver.check()
                    progress.update(report.step, f"loss {report.loss:.4f}  {report.tokens / seconds:.0f} tokens/s")
                    improved = self._is_due(plan.valid_every_steps) and self._validate(file, progress)
                    # The best step must be on disk, so an improvement is saved even between two intervals.
                    if improved or self._is_due(plan.save_every_steps) or self._stop_reason:
                        self._saver.save(self.state)
                        saved_step = report.step
                    if self._stop_reason:
                        break
                    step_began = time.monotonic()
            except Interrupted:
                if self.state.step > saved_step:
                    self._saver.save(self.state)
                raise
            finally:
                progress.close()

    @property
    def _stop_reason(self) -> str | None:
        """Why training ends before the last step of the plan; None if it does not."""
        if self.state.step == self.setup.plan.total_steps:
            return None
        return stop_reason(self.setup.recipe.train, self.state)

    def finish(self, stage_inputs: dict[str, Any]) -> dict[str, Any]:
        """Write the stage's manifest, with the best step and the facts of the training; return it."""
        peak = max(self.setup.group.all_gather(peak_memory_gib(self.setup.compute.device)))
        return self.setup.group.run_on_rank0(lambda: self._seal(stage_inputs, peak))

    def _seal(self, stage_inputs: dict[str, Any], peak_gib: float) -> dict[str, Any]:
        trained, total = count_parameters(self.setup.model)
        recipe, expected = self.setup.recipe, self.setup.expected
        quantization = quantization_of(recipe)
        facts: dict[str, Any] = {
            "stage": "train",
            "inputs": stage_inputs,
            "seconds": self.state.seconds,
            "steps": self.state.step,
            "stopped_early": self._stop_reason,
            "best_step": self.state.best_step or self.state.step,
            "chosen_by": recipe.train.select_best_by,
            "best_value": self.state.best_value,
            "valid_loss_rows": len(self._validation.rows) if self._validation else 0,
            "trainable_parameters": trained,
            "all_parameters": total,
            "tokens": self.state.tokens,
            "tokens_per_second": round(self.state.tokens / max(self.state.seconds, 1e-9), 1),
            "peak_memory_gib": round(peak_gib, 3),
            "expected_memory_gib": round(expected.total, 3) if expected else None,
            "expected_memory": asdict(expected) if expected else None,
            "passes": str(self.setup.oom_retry.policy),
            "plain_path": self.setup.plain_path,
            "precision": self.setup.compute.precision,
            "quantization": str(quantization) if quantization else None,
            "device": str(self.setup.compute.device),
            "processes": self.setup.group.rank_info.world_size,
            "sharding": self.setup.sharding,
        }
        if reason := self._stop_reason:
            log(f"stopped early at step {self.state.step} of {self.setup.plan.total_steps}: {reason}")
        if expected:
            log(f"peak memory: {facts['peak_memory_gib']:.2f} GiB; estimated: {expected.total:.2f} GiB")
        self._save_speed()
        return seal_folder(self.run.stage("train"), **facts)

    def _save_speed(self) -> None:
        """Record how fast one rank trained since this process started, for the estimates of later plans."""
        rank_info, state, on_cpu = self.setup.group.rank_info, self.state, self.setup.compute.device.type == "cpu"
        if (seconds := state.seconds - self._first_state.seconds - self._update_seconds) > 0:
            tokens_per_second = (state.tokens - self._first_state.tokens) / seconds / rank_info.world_size
            update = self._update_seconds / (state.step - self._first_state.step)
            update /= updated_share(self.setup.model, self.optimizer)
            validation, reading = self._validation, None
            if validation is not None and validation.seconds > 0:
                reading = validation.tokens / validation.seconds / rank_info.world_size
            speed = Speed(tokens_per_second, cores_per_rank(rank_info) if on_cpu else None, update, reading)
            key = speed_key(self.origin.card["base_digest"], self.setup.recipe)
            save_speed(key, speed, alone=rank_info.world_size == 1)

    def _is_due(self, every: int) -> bool:
        """Return whether something that happens every `every` steps, and after the last, is due now."""
        return self.state.step % every == 0 or self.state.step == self.setup.plan.total_steps

    def _validate(self, file: TextIO, progress: Progress) -> bool:
        """Measure the validation split and update the best step; return whether this step is the best."""
        if self._validation is None:
            return False
        step, higher = self.state.step, self._validation.higher_is_better
        values = self._validation.measure(step, progress.set_note)
        self.log_line(file, {"kind": "valid", "step": step, **values})
        value = values.get(self.setup.recipe.train.select_best_by)
        improved = step > 0 and is_better(value, self.state.best_value, higher=higher)
        self.state = replace(self.state, validated_step=step)
        if step > 0:
            self.state = count_validation(self.state, self.setup.recipe.train.stop_early, value, higher=higher)
        if improved:
            self.state = replace(self.state, best_step=step, best_value=value)
        return improved

    def log_line(self, file: TextIO, line: dict[str, Any]) -> None:
        """Append a line to the log, from any thread."""
        with self._log_lock:
            file.write(json_line(line))
            file.flush()

    def _discard_after(self, step: int) -> None:
        """Remove from the log and the answers what a killed process wrote after the checkpoint of `step`."""

        def precedes(line: dict[str, Any]) -> bool:
            will_repeat = line["kind"] == "valid" and line["step"] == step != self.state.validated_step
            return bool(line["step"] <= step) and not will_repeat

        lines = [line for line in read_whole_lines(self.run.metrics) if precedes(line)] if step else []
        write_text(self.run.metrics, "".join(map(json_line, lines)))
        answers = {self.run.valid_answers(line["step"]) for line in lines if line["kind"] == "valid"}
        for path in self.run.valid_answers(0).parent.glob("*.jsonl"):
            if path not in answers:
                path.unlink()


def _step_line(report: StepReport, seconds: float) -> dict[str, Any]:
    """Return the line of `metrics.jsonl` for a step."""
    timing = {"seconds": round(seconds, 4), "tokens_per_second": round(report.tokens / seconds, 1)}
    if report.update_seconds is not None:
        timing["update_seconds"] = round(report.update_seconds, 4)
    return {"kind": "step", **asdict(report), **timing}
