"""Checkpoints hold everything that a resume needs, without pickle, and are either complete or absent.

step-000100/  model/ (plain PEFT or transformers folder)  optimizer.safetensors  state.json  manifest.json

If trained weights are sharded, a folder `optimizer/` with one file per rank replaces the optimizer file. A checkpoint
of either kind can be resumed by any number of processes.
"""

import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import (
    check_folder,
    new_folder,
    read_json,
    remove_folder,
    remove_leftovers,
    translate_enospc,
    write_json,
)
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.data.trained_rows import TRAINED_ROWS
from tunesmith.distributed.process_group import ProcessGroup
from tunesmith.distributed.sharded_state import gather_full_state_dict, read_shards, write_shards
from tunesmith.fetch.reference import CARD, ModelFolder, name_for_peft
from tunesmith.model.adapters import restore_weights, save_model
from tunesmith.model.dtensor import is_dtensor, shard_like_weight
from tunesmith.model.portable import make_portable
from tunesmith.model.trainable import trained_parameters
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.tokenizer import TokenizerAdapter
from tunesmith.train.inputs import require_same_inputs
from tunesmith.train.optim import optimizer_tensors, restore_optimizer

# The folder of the optimizer state if each rank writes its shard.
_SHARDS = "optimizer"


@dataclass(frozen=True, slots=True)
class State:
    """The progress of a run. The order of rows and all randomness follow from the seed and `step`.

    Attributes:
        inputs: the inputs of training (see `train.inputs`), or their digest.
        validated_step: the last step that was validated; less than `step` if a signal came before the validation.
        best_value: the value of `train.select_best_by` at `best_step`.
        reference_value, without_improvement: the value at the last improvement that `train.stop_early` counts, and the
            number of validations since.
    """

    step: int
    inputs: dict[str, Any] | str
    validated_step: int | None = None
    best_step: int | None = None
    best_value: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    loss_scale: float | None = None
    reference_value: float | None = None
    without_improvement: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a checkpoint, as it is after one step.

    Attributes:
        model: the live model, which may have been trained further since.
        weights: a full copy of its weights; None if the model itself still holds them, or if this is not rank 0.
        optimizer: the optimizer state, or this rank's shard of it.
    """

    state: State
    model: Any
    weights: dict[str, torch.Tensor] | None
    optimizer: dict[str, torch.Tensor]
    is_sharded: bool


@dataclass(frozen=True, slots=True)
class ModelOrigin:
    """What the model of every checkpoint of a run is saved with, apart from its weights.

    Attributes:
        base: the model from which the training started.
        card: the metadata in the model's folder, without the step.
    """

    base: ModelFolder
    tokenizer: TokenizerAdapter
    card: dict[str, Any]


def take_snapshot(
    state: State, model: Any, optimizer: torch.optim.Optimizer, group: ProcessGroup, *, copy: bool
) -> Snapshot:
    """Return the content of a checkpoint of this step. If trained weights are sharded, all ranks must call this.

    Args:
        copy: copy the state, so that training can continue before it is written. A sharded state is always copied.
    """
    is_sharded = is_training_sharded(model)
    tensors = optimizer_tensors(model, optimizer)
    if copy or is_sharded:  # gathered weights are a copy anyway
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    weights = gather_full_state_dict(model, keep=group.is_rank0) if is_sharded or copy else None
    return Snapshot(state, model, weights, tensors, is_sharded)


def is_training_sharded(model: Any) -> bool:
    """Return whether trained weights are sharded over the ranks."""
    return any(is_dtensor(weight) for _, weight in trained_parameters(model))


def save_checkpoint(run: RunDir, snapshot: Snapshot, origin: ModelOrigin, group: ProcessGroup) -> None:
    """Write a checkpoint: model, tokenizer, card, optimizer and state.

    Rank 0 writes. If trained weights are sharded, every rank writes its shard of the optimizer state, and the
    checkpoint is complete when all ranks have done so.
    """
    path = run.checkpoint(snapshot.state.step)
    if not snapshot.is_sharded:
        with new_folder(path, step=snapshot.state.step) as folder:
            _write(run, snapshot, folder, origin)
            save_file(snapshot.optimizer, folder / "optimizer.safetensors")
        return
    with ExitStack() as stack:
        stack.enter_context(translate_enospc(path))
        folder = group.run_on_rank0(lambda: stack.enter_context(new_folder(path, step=snapshot.state.step)))
        group.run_on_rank0(lambda: _write(run, snapshot, folder, origin))
        write_shards(snapshot.optimizer, folder / _SHARDS, group.channel)
        group.barrier()


def _write(run: RunDir, snapshot: Snapshot, folder: Path, origin: ModelOrigin) -> None:
    name, revision = name_for_peft(origin.base, run.checkpoint(snapshot.state.step) / "model")
    save_model(snapshot.model, folder / "model", base=name, revision=revision, weights=snapshot.weights)
    origin.tokenizer.hf_tokenizer.save_pretrained(folder / "model")
    make_portable(folder / "model")
    write_json(folder / "model" / CARD, {**origin.card, "step": snapshot.state.step})
    if (rows := run.stage("prepare") / TRAINED_ROWS).exists():
        shutil.copyfile(rows, folder / "model" / TRAINED_ROWS)
    write_json(folder / "state.json", asdict(snapshot.state))


def latest_state(recipe: Recipe, run: RunDir, expected_inputs: dict[str, Any]) -> State | None:
    """Return the state of the newest intact checkpoint, or None if there is no checkpoint.

    Raises:
        RecipeError: the checkpoint was made from inputs other than `expected_inputs`.
        DamagedFile: all checkpoints are damaged. Training does not start over, because that would hide the damage.
    """
    remove_leftovers(run.checkpoints)
    damaged = []
    for path in _newest_first(run):
        try:
            check_folder(path)
            state = _with_best(run, State(**read_json(path / "state.json")))
        except DamagedFile as error:
            log(f"skipping a damaged checkpoint: {error}")
            damaged.append(path.name)
            continue
        require_same_inputs(state.inputs, expected_inputs, recipe, path)
        return state
    if damaged:
        message = f"all checkpoints are damaged: {', '.join(damaged)}"
        hint = "move the folder away to start again from the first step"
        raise DamagedFile(message, where=str(run.checkpoints), hint=hint, code="no-intact-checkpoint")
    return None


def _with_best(run: RunDir, state: State) -> State:
    """Return the state after checking the best checkpoint, which the run may end with; raise DamagedFile."""
    if state.best_step in (None, state.step):
        return state
    best = run.checkpoint(int(state.best_step or 0))
    if best.exists():
        check_folder(best)
        return state
    # It was pruned for a better one, which is damaged now; training repeats that step.
    return replace(state, best_step=None, best_value=None)


def restore(run: RunDir, state: State, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Load the weights and the optimizer state of a checkpoint into a model and its optimizer."""
    folder = run.checkpoint(state.step)
    restore_weights(model, folder / "model")
    weights = dict(trained_parameters(model))
    if (folder / _SHARDS).exists():
        tensors = read_shards(folder / _SHARDS, weights)
    else:
        stored = load_file(folder / "optimizer.safetensors")
        tensors = {name: shard_like_weight(name, tensor, weights) for name, tensor in stored.items()}
    restore_optimizer(model, optimizer, tensors)


def prune(run: RunDir, *, keep: int, step: int, best_step: int | None) -> None:
    """Remove all checkpoints except the best one and the `keep` latest at or before `step`.

    Checkpoints after `step` are damaged, because the run resumed from an earlier one. They are removed too.
    """
    kept = [path for path in _newest_first(run) if _step_of(path) <= step][:keep]
    if best_step is not None:
        kept.append(run.checkpoint(best_step))
    for path in _newest_first(run):
        if path not in kept:
            remove_folder(path)


def _newest_first(run: RunDir) -> list[Path]:
    paths = (path for path in run.checkpoints.glob("step-*") if path.name.removeprefix("step-").isdigit())
    return sorted(paths, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
