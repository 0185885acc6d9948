"""Checkpoints: whole or absent, everything that resuming needs, no pickle.

step-000100/  model/ (plain PEFT or transformers folder)  optimizer.safetensors  state.json  manifest.json

Where processes have parts of what is trained there is a folder `optimizer` instead, with a file of each. Any number of
processes goes on from either.
"""

import shutil
from collections.abc import Iterator
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
from tunesmith.fetch.reference import CARD, name_for_peft
from tunesmith.model.adapters import restore_weights, save_model, trained_parameters
from tunesmith.model.dtensor import is_dtensor, shard_like_weight
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.tokenizer import TokenizerAdapter
from tunesmith.train.inputs import require_same_inputs
from tunesmith.train.optim import optimizer_tensors, restore_optimizer

# Where the optimizer's state lies if each process writes its part of it.
_PARTS = "optimizer"


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands. The order of rows and all randomness follow from the seed and `step`.

    `inputs` are those of training, see `train.inputs`. `validated_step` is the last step that was measured on the
    validation split: not `step`, where a signal came first. `best_value` is what `train.select_best_by` had at
    `best_step`.
    """

    step: int
    inputs: dict[str, Any] | str
    validated_step: int | None = None
    best_step: int | None = None
    best_value: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    loss_scale: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint will hold, as it was at one step.

    Attributes:
        model: whose weights they are, which may have been trained further.
        weights: whole; None where the model's own have not changed, or another process has them.
        optimizer: its state, of which each process has its part where what is trained is divided.
    """

    state: State
    model: Any
    weights: dict[str, torch.Tensor] | None
    optimizer: dict[str, torch.Tensor]
    divided: bool


def take_snapshot(
    state: State, model: Any, optimizer: torch.optim.Optimizer, group: ProcessGroup, *, copied: bool
) -> Snapshot:
    """Return what a checkpoint of this step holds. Where what is trained is divided, all have to take part.

    Args:
        copied: training may go on before it is written, which in parts it always may.
    """
    divided = is_training_sharded(model)
    tensors = optimizer_tensors(model, optimizer)
    if copied or divided:  # what is put together is a copy anyway
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    weights = gather_full_state_dict(model, keep=group.is_rank0) if divided or copied else None
    return Snapshot(state, model, weights, tensors, divided)


def is_training_sharded(model: Any) -> bool:
    """Say whether a process has a part only of something that is trained."""
    return any(is_dtensor(weight) for _, weight in trained_parameters(model))


def save_checkpoint(
    run: RunDir, taken: Snapshot, tokenizer: TokenizerAdapter, card: dict[str, Any], group: ProcessGroup
) -> None:
    """Write the checkpoint of a step: model, tokenizer, card, optimizer, position.

    The first process writes. Where what is trained is divided, every process writes its part of the optimizer's state,
    and the checkpoint is whole when all have.
    """
    path = run.checkpoint(taken.state.step)
    if not taken.divided:
        with new_folder(path, step=taken.state.step) as folder:
            _write(run, taken, folder, tokenizer, card)
            save_file(taken.optimizer, folder / "optimizer.safetensors")
        return
    with ExitStack() as held:
        held.enter_context(translate_enospc(path))
        folder = group.run_on_rank0(lambda: held.enter_context(new_folder(path, step=taken.state.step)))
        group.run_on_rank0(lambda: _write(run, taken, folder, tokenizer, card))
        write_shards(taken.optimizer, folder / _PARTS, group.channel)
        group.barrier()


def _write(run: RunDir, taken: Snapshot, folder: Path, tokenizer: TokenizerAdapter, card: dict[str, Any]) -> None:
    base, revision = name_for_peft(card)
    save_model(taken.model, folder / "model", base=base, revision=revision, weights=taken.weights)
    tokenizer.hf_tokenizer.save_pretrained(folder / "model")
    write_json(folder / "model" / CARD, {**card, "step": taken.state.step})
    if (rows := run.stage("prepare") / TRAINED_ROWS).exists():
        shutil.copyfile(rows, folder / "model" / TRAINED_ROWS)
    write_json(folder / "state.json", asdict(taken.state))


def latest_state(recipe: Recipe, run: RunDir, wanted: dict[str, Any]) -> State | None:
    """Return where the newest whole checkpoint stands, or None where there is nothing yet.

    Args:
        wanted: the inputs of training now, which the checkpoint must have too.

    Raises:
        RecipeError: it was made from other inputs.
        DamagedFile: there are checkpoints, and none of them is whole; starting again would hide that.
    """
    remove_leftovers(run.checkpoints)
    damaged = []
    for path in _newest_first(run):
        try:
            check_folder(path)
            state = _with_best(run, State(**read_json(path / "state.json")))
        except DamagedFile as error:
            log(f"skipping a checkpoint: {error}")
            damaged.append(path.name)
            continue
        require_same_inputs(state.inputs, wanted, recipe, path)
        return state
    if damaged:
        raise DamagedFile(
            f"all checkpoints are damaged: {', '.join(damaged)}",
            where=str(run.checkpoints),
            hint="move the folder away to start again from the first step",
        )
    return None


def _with_best(run: RunDir, state: State) -> State:
    """Return the state after checking the best checkpoint so far, which a run may end with; raise DamagedFile."""
    if state.best_step in (None, state.step):
        return state
    best = run.checkpoint(int(state.best_step or 0))
    if best.exists():
        check_folder(best)
        return state
    # Pruned when a better one came, which is damaged now and will be made again.
    return replace(state, best_step=None, best_value=None)


def restore(run: RunDir, state: State, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Put model and optimizer where a checkpoint left them."""
    folder = run.checkpoint(state.step)
    restore_weights(model, folder / "model")
    weights = dict(trained_parameters(model))
    if (folder / _PARTS).exists():
        tensors = read_shards(folder / _PARTS, weights)
    else:
        stored = load_file(folder / "optimizer.safetensors")
        tensors = {name: shard_like_weight(name, tensor, weights) for name, tensor in stored.items()}
    restore_optimizer(model, optimizer, tensors)


def prune(run: RunDir, *, keep: int, step: int, best_step: int | None) -> None:
    """Remove all checkpoints but the best one and the `keep` latest up to `step`.

    Later ones are damaged: the run went back behind them, and they must not count as those that are kept.
    """
    wanted = [path for path in _newest_first(run) if _step_of(path) <= step][:keep]
    if best_step is not None:
        wanted.append(run.checkpoint(best_step))
    for path in list(_newest_first(run)):
        if path not in wanted:
            remove_folder(path)


def _newest_first(run: RunDir) -> Iterator[Path]:
    paths = [path for path in run.checkpoints.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    yield from sorted(paths, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
