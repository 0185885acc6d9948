"""STAGE 2: wires model, tokens and loop; logs, validates, saves, and writes the manifest last.

Many processes may train together. Each runs all of this, and the first of them writes.
"""

import os
import threading
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.architecture.base_model import require_embedding_rows
from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.shapes import Shapes
from tunesmith.core import interrupt
from tunesmith.core.errors import Interrupted, ProcessLost, RecipeError
from tunesmith.core.files import digest_of, seal_folder, translate_enospc, write_text
from tunesmith.core.jsonl import json_line, read_whole_lines
from tunesmith.core.progress import Progress, log
from tunesmith.core.records import StepReport
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.data.fit import (
    MemoryBudget,
    check_max_positions,
    check_packing_supported,
    choose_sharding,
    fit_micro_batches,
    make_micro_batch_policy,
)
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.distributed.fsdp import load_device, memory_budget, shard
from tunesmith.distributed.process_group import ProcessGroup, cores_per_rank, current_group, peer_failures_as_errors
from tunesmith.estimate.hardware import available_memory_gib
from tunesmith.estimate.throughput import Speed, save_speed
from tunesmith.fetch.reference import ModelFolder, base_card, resolve_base
from tunesmith.kernels.causality_check import require_causal_attention
from tunesmith.kernels.fast_path import enable_fast_path
from tunesmith.kernels.oom import OomRetry
from tunesmith.kernels.packed_attention import has_packed_attention
from tunesmith.kernels.packing_check import attention_window, has_dropout, packing_unsupported_reason
from tunesmith.model.adapters import (
    count_parameters,
    enable_activation_checkpointing,
    make_trainable,
    open_model,
    trained_parameters,
)
from tunesmith.model.dtensor import local_shard
from tunesmith.model.load import ComputeConfig, compute_config, max_positions, stored_dtype
from tunesmith.model.memory import free_memory, return_freed_memory_at_once
from tunesmith.model.quantization import quantization_of
from tunesmith.objectives.base import Objective, require_columns
from tunesmith.objectives.sft import SFT
from tunesmith.recipe.launch import Sharding, shard_count
from tunesmith.recipe.schedule import plan_steps
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import FullTuning
from tunesmith.tasks.chatml import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter
from tunesmith.train.async_save import AsyncSaver
from tunesmith.train.checkpoint import State, latest_state, restore
from tunesmith.train.crash_loop import record_attempt
from tunesmith.train.inputs import inputs
from tunesmith.train.loop import INITIAL_LOSS_SCALE, Setup, train_steps
from tunesmith.train.optim import make_optimizer
from tunesmith.train.resource_monitor import monitor_resources, peak_memory_gib, reset_peak_memory
from tunesmith.train.validate import Validation, valid_rows


def train(recipe: Recipe, run: RunDir, objective: Objective = SFT) -> dict[str, Any]:
    """Train the recipe's model on what `prepare` left in `run`, going on from the last checkpoint.

    Raises:
        RecipeError: rows are longer than the model can read, or the model is not causal.
        DoesNotFit: the disk is full; the last checkpoint is whole.
        NonFinite: loss or gradient became NaN or infinite.
        Interrupted: a signal came; a checkpoint of the last finished step is kept.
    """
    stated, group = inputs(recipe, run), current_group()
    if objective is not SFT:
        stated["objective"] = objective.name
    group.require_equal(stated)
    began = group.run_on_rank0(lambda: latest_state(recipe, run, stated))
    state = replace(began, inputs=stated) if began else State(0, stated)
    base = resolve_base(run, recipe.model.base)
    compute = compute_config(recipe)
    if compute.device.type == "cpu" and os.environ.get("SLURM_GPUS_ON_NODE"):
        log("warning: the job has GPUs and torch sees none, so this trains on the processor: is it a torch for CPUs?")
    reset_peak_memory(compute.device)
    tokenizer = load_tokenizer(base, recipe.model.chat_markup)
    with peer_failures_as_errors():
        setup = _setup(recipe, run, base, compute, tokenizer, state, objective)
        optimizer = make_optimizer(setup.model, recipe.train)
        if state.step:
            restore(run, state, setup.model, optimizer)
    if state.step:
        log(f"going on from step {state.step} of {setup.plan.total_steps}")
    session = _Session(recipe, run, setup, optimizer, state, tokenizer, _card(recipe, run, base, stated))
    try:
        # From here on: what is killed while it loads has tried nothing yet.
        with (
            record_attempt(recipe, run, group, first_step=state.step),
            interrupt.defer_signals() if group.is_distributed else nullcontext(),
        ):
            session.work()
    except ProcessLost:
        raise
    except Interrupted:
        group.barrier()  # until the checkpoint is whole: who started the processes may end them all when one ends
        raise
    return session.finish(stated)


def _setup(
    recipe: Recipe,
    run: RunDir,
    base: ModelFolder,
    compute: ComputeConfig,
    tokenizer: TokenizerAdapter,
    state: State,
    objective: Objective,
) -> Setup:
    tokens, group = TokenDataset(run.tokens("train")), current_group()
    require_columns(objective, tokens)
    room, beside = memory_budget(compute, group), available_memory_gib() / group.rank_info.local_world_size
    shapes = _shapes(base)
    sharding = _sharding(recipe, shapes, tokens, room, group, len(tokenizer.new_ids))
    # Full fine-tuning keeps fp32 masters and computes in less by autocast; LoRA's base is never updated.
    masters = torch.float32 if isinstance(recipe.tuning, FullTuning) else None
    model = _open(recipe, base, load_device(compute, sharding), masters, tokenizer, in_parts=sharding != "none")
    longest, highest = _extremes(run)
    check_max_positions(max_positions(model), longest)
    require_embedding_rows(highest, int(model.get_input_embeddings().weight.shape[0]), where=recipe.model.base)
    model = make_trainable(model, recipe.tuning, seed=recipe.seed, new_tokens=tokenizer.new_ids)
    if recipe.train.activation_checkpointing:
        enable_activation_checkpointing(model)
        if compute.device.type == "cpu":
            return_freed_memory_at_once()  # who computes twice to save memory wants it saved
    if sharding != "none":
        by_node, offload = sharding == "node", recipe.launch.offload
        shard(model, compute, group, by_node=by_node, offload=offload, master_dtype=masters)
    require_causal_attention(model, tokens, tokenizer.pad_id, compute)
    plan = plan_steps(recipe, len(tokens))
    plain_path = enable_fast_path(model, tokens, tokenizer.pad_id, compute)
    for name, reason in plain_path.items():
        log(f"{name} are not used: {reason}")
    policy = _division(recipe, model, tokens, tokenizer.pad_id, room, compute)
    if sharding != "none":
        free_memory()  # of the first passes, for which each layer had streams of its own
    expected = None
    if shapes is not None:
        shards = shard_count(sharding, group.rank_info.world_size, group.rank_info.local_world_size)
        new = len(tokenizer.new_ids)
        policy, expected = fit_micro_batches(recipe, shapes, tokens, policy, room, new_tokens=new, shards=shards)
        if expected.total > room.available_gib:
            log(f"warning: training needs about {expected.total:.1f} GiB, and {room.available_gib:.1f} are available")
        if expected.offloaded > beside:
            log(f"warning: beside the GPU it needs about {expected.offloaded:.1f} GiB, and {beside:.1f} are available")
    scale = state.loss_scale or (INITIAL_LOSS_SCALE if compute.dtype == torch.float16 else 1.0)
    passes = OomRetry(policy, lockstep=sharding != "none")
    return Setup(
        recipe, plan, compute, model, tokens, tokenizer.pad_id, passes, scale, expected, plain_path, group, sharding,
        objective,
    )  # fmt: skip


def _open(
    recipe: Recipe,
    base: ModelFolder,
    at: ComputeConfig,
    masters: torch.dtype | None,
    tokenizer: TokenizerAdapter,
    *,
    in_parts: bool,
) -> Any:
    """Return the model to train on, all of it.

    What is divided stays as it is stored where that says the same, mapped from files that processes of a machine share:
    masters are then made of parts.
    """
    told: dict[str, Any] = {
        "attention": recipe.model.attention, "merged": True, "quantization": quantization_of(recipe),
        "new_tokens": tokenizer.new_ids,
    }  # fmt: skip
    if in_parts and masters and base.base is None and not tokenizer.new_ids and (stored := stored_dtype(base)):
        model = open_model(base, at, dtype=stored, **told)
        # Constants that the model makes for itself would be rounded.
        if stored == masters or not any(constant.dtype == stored for constant in model.buffers()):
            return model
        del model
    return open_model(base, at, dtype=masters or at.dtype, **told)


def _division(
    recipe: Recipe, model: Any, tokens: TokenDataset, pad_id: int, room: MemoryBudget, compute: ComputeConfig
) -> MicroBatchPolicy:
    """Return how rows are cut into forward passes: side by side where the model is proved to keep them apart."""
    packing = recipe.train.packing
    reason = packing_unsupported_reason(model, tokens, pad_id, compute) if packing != "never" else None
    check_packing_supported(recipe, reason)
    if reason:
        log(f"every row has a sequence of its own: {reason}")
    share, reach = not has_dropout(model), attention_window(model)
    by_row = has_packed_attention(model)
    return make_micro_batch_policy(
        recipe, room, can_pack=reason is None, share_prefix=share, packed_attention=by_row, attention_window=reach
    )


def _shapes(base: ModelFolder) -> Shapes | None:
    """Return the shapes that memory follows from; None where they cannot be told, for training needs no estimate."""
    with suppress(RecipeError):
        return shapes_of(base.root.path)
    return None


def _sharding(
    recipe: Recipe,
    shapes: Shapes | None,
    tokens: TokenDataset,
    room: MemoryBudget,
    group: ProcessGroup,
    new_tokens: int,
) -> Sharding:
    """Return what this process keeps of the model: less than all of it where any process has no room for that."""
    asked = recipe.launch.sharding
    if not group.is_distributed:
        if asked in ("full", "node"):
            log(f"launch.sharding: {asked} has no effect on one process")
        return "none"
    if recipe.launch.offload and not room.on_gpu:
        log("launch.offload has no effect on a processor")
    if shapes is None:
        return "none" if asked == "auto" else asked
    found = choose_sharding(recipe, shapes, tokens, room, group.rank_info.world_size, new_tokens=new_tokens)
    found = next((one for one in group.all_gather(found) if one != "none"), "none")
    if asked == "auto" and found != "none":
        log(f"every process keeps its part of the layers: all of the model has no room in {room.available_gib:.1f} GiB")
    return found


def _extremes(run: RunDir) -> tuple[int, int]:
    """Return how many positions the rows of all splits need, and the highest token id in them."""
    sets = [TokenDataset(path) for split in SPLITS if (path := run.tokens(split)).exists()]
    return max(one.max_length for one in sets), max(one.max_token_id for one in sets)


def _card(recipe: Recipe, run: RunDir, base: ModelFolder, stated: dict[str, Any]) -> dict[str, Any]:
    """Return what a saved model must say about itself to be used as it was trained."""
    quantization = quantization_of(recipe)
    return {
        **base_card(base, run.checkpoint(0) / "model"),
        "data": recipe.data.model_dump(mode="json", exclude={"source", "split"}),
        "quantization": quantization.model_dump(mode="json") if quantization else None,
        "chat_markup": recipe.model.chat_markup,
        "precision": recipe.model.precision,
        "inputs": digest_of(stated),
        "name": recipe.name,
    }


@dataclass
class _Session:
    """One process's share of a run: from the state it found to the end, a signal or a fault."""

    recipe: Recipe
    run: RunDir
    setup: Setup
    optimizer: torch.optim.Optimizer
    state: State
    tokenizer: TokenizerAdapter
    card: dict[str, Any]

    def __post_init__(self) -> None:
        self._began, self._updates = self.state, 0.0
        self._writing = threading.Lock()  # the machine's use is logged from a thread
        self._saver = AsyncSaver(
            self.run, self.setup.model, self.optimizer, self.tokenizer, self.card, self.setup.group,
            keep=self.recipe.train.keep_checkpoints,
        )  # fmt: skip
        rows = valid_rows(self.run)
        self._validation = Validation(self.setup, self.run, rows, self.tokenizer) if rows is not None else None
        if rows is not None and self._validation is not None and len(self._validation.rows) < len(rows):
            log(
                f"every validation measures the loss of the same {len(self._validation.rows):,} of {len(rows):,} valid "
                "rows, chosen by hash (train.valid_loss_rows)"
            )

    def work(self) -> None:
        """Take the steps that are left; log, validate and save when due."""
        plan = self.setup.plan
        metrics = Path(os.devnull)
        if self.setup.group.is_rank0:
            metrics = self.run.metrics
            self._forget_after(self.state.step)
        saved = self.state.step
        with (
            translate_enospc(metrics),
            metrics.open("a", encoding="utf-8") as log,
            monitor_resources(
                lambda use: self._log(log, {"kind": "machine", "step": self.state.step, **use}),
                self.setup.compute.device,
            ),
            self._saver.finish_on_exit(),
        ):
            # Before the first step, and where a signal came before a validation that was due.
            if self._is_due(plan.valid_every_steps) and self.state.validated_step != self.state.step:
                with closing(Progress("train", total=plan.total_steps, start=self.state.step)) as before:
                    self._validate(log, before)
            progress = Progress("train", total=plan.total_steps, start=self.state.step)
            clock = time.monotonic()
            try:
                for report in train_steps(self.setup, self.optimizer, first_step=self.state.step):
                    seconds, clock = time.monotonic() - clock, time.monotonic()
                    self.state = replace(
                        self.state,
                        step=report.step,
                        tokens=self.state.tokens + report.tokens,
                        loss_scale=report.loss_scale,
                        seconds=round(self.state.seconds + seconds, 3),
                    )
                    self._updates += report.update_seconds or 0.0
                    self._log(log, _line(report, seconds))
                    self._saver.check()
                    progress.update(report.step, f"loss {report.loss:.4f}  {report.tokens / seconds:.0f} tokens/s")
                    improved = self._is_due(plan.valid_every_steps) and self._validate(log, progress)
                    # The best step must be on disk, so an improvement is saved even between two intervals.
                    if improved or self._is_due(plan.save_every_steps):
                        self._saver.save(self.state)
                        saved = report.step
                    clock = time.monotonic()
            except Interrupted:
                if self.state.step > saved:
                    self._saver.save(self.state)
                raise
            finally:
                progress.close()

    def finish(self, stated: dict[str, Any]) -> dict[str, Any]:
        """Write the stage's manifest: what was done, and which step was best; return it."""
        peak = max(self.setup.group.all_gather(peak_memory_gib(self.setup.compute.device)))
        return self.setup.group.run_on_rank0(lambda: self._seal(stated, peak))

    def _seal(self, stated: dict[str, Any], peak_gib: float) -> dict[str, Any]:
        best = self.state.best_step or self.state.step
        trained, everything = count_parameters(self.setup.model)
        quantization = quantization_of(self.recipe)
        expected = self.setup.expected
        facts: dict[str, Any] = {
            "stage": "train",
            "inputs": stated,
            "seconds": self.state.seconds,
            "steps": self.state.step,
            "best_step": best,
            "chosen_by": self.recipe.train.select_best_by,
            "best_value": self.state.best_value,
            "valid_loss_rows": len(self._validation.rows) if self._validation else 0,
            "trainable_parameters": trained,
            "all_parameters": everything,
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
        if expected:
            log(f"memory: {facts['peak_memory_gib']:.2f} GiB at the peak, {expected.total:.2f} expected beforehand")
        self._remember_speed()
        return seal_folder(self.run.stage("train"), **facts)

    def _remember_speed(self) -> None:
        """Note for plans how fast one process was in this turn."""
        place, state, on_cpu = self.setup.group.rank_info, self.state, self.setup.compute.device.type == "cpu"
        if (seconds := state.seconds - self._began.seconds - self._updates) > 0:
            each = (state.tokens - self._began.tokens) / seconds / place.world_size
            weights = [weight for _, weight in trained_parameters(self.setup.model)]
            moved = sum(local_shard(weight).numel() for weight in weights) / sum(weight.numel() for weight in weights)
            update = self._updates / (state.step - self._began.step) / moved
            reading = self._reading(place.world_size)
            speed = Speed(each, cores_per_rank(place), update, reading) if on_cpu else Speed(each, reading=reading)
            of = self.card["base_digest"], self.recipe.tuning.method
            save_speed(*of, speed, alone=place.world_size == 1)

    def _reading(self, world: int) -> float | None:
        """Return how many tokens a second each process has read in this turn's validations, if there were any."""
        found = self._validation
        return found.tokens / found.seconds / world if found is not None and found.seconds > 0 else None

    def _is_due(self, every: int) -> bool:
        """Say whether something that is done every so many steps, and after the last, is due now."""
        return self.state.step % every == 0 or self.state.step == self.setup.plan.total_steps

    def _validate(self, log: Any, progress: Progress) -> bool:
        """Measure the validation split; note the best step so far and say whether this is it."""
        if self._validation is None:
            return False
        step, choice = self.state.step, self._validation.choice
        found = self._validation.measure(step, progress.set_note)
        self._log(log, {"kind": "valid", "step": step, **found})
        value = found.get(choice.by)
        improved = step > 0 and choice.prefers(value, self.state.best_value)
        self.state = replace(self.state, validated_step=step)
        if improved:
            self.state = replace(self.state, best_step=step, best_value=value)
        return improved

    def _log(self, log: Any, line: dict[str, Any]) -> None:
        with self._writing:
            log.write(json_line(line))
            log.flush()

    def _forget_after(self, step: int) -> None:
        """Leave out of log and answers what a killed process did after the checkpoint that we go on from."""

        def counts(line: dict[str, Any]) -> bool:
            again = line["kind"] == "valid" and line["step"] == step != self.state.validated_step
            return bool(line["step"] <= step) and not again

        kept = [line for line in read_whole_lines(self.run.metrics) if counts(line)] if step else []
        write_text(self.run.metrics, "".join(map(json_line, kept)))
        answered = {self.run.valid_answers(line["step"]) for line in kept if line["kind"] == "valid"}
        for path in self.run.valid_answers(0).parent.glob("*.jsonl"):
            if path not in answered:
                path.unlink()


def _line(report: StepReport, seconds: float) -> dict[str, Any]:
    took = {"seconds": round(seconds, 4), "tokens_per_second": round(report.tokens / seconds, 1)}
    if report.update_seconds is not None:
        took["update_seconds"] = round(report.update_seconds, 4)
    return {"kind": "step", **asdict(report), **took}
