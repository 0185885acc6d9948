"""Checkpoints: whole or absent, everything that resuming needs, no pickle.

step-000100/  model/ (plain PEFT or transformers folder)  optimizer.safetensors  state.json  manifest.json
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.core.files import check_folder, new_folder, read_json, remove_folder, remove_leftovers, write_json
from tunesmith.core.progress import say
from tunesmith.core.rundir import RunDir
from tunesmith.fetch.reference import CARD
from tunesmith.model.adapters import restore_weights, save_model
from tunesmith.tasks.tokenizer import Codec
from tunesmith.train.optim import optimizer_tensors, restore_optimizer


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands. The order of rows and all randomness follow from the seed and `step`.

    `validated_step` is the last step that was measured on the validation split: not `step`, where a signal came first.
    `best_value` is what `train.choose_by` had at `best_step`.
    """

    step: int
    inputs: str
    validated_step: int | None = None
    best_step: int | None = None
    best_value: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    loss_scale: float | None = None


def save_checkpoint(
    run: RunDir, state: State, model: Any, optimizer: torch.optim.Optimizer, codec: Codec, card: dict[str, Any]
) -> None:
    """Write the checkpoint of a step: model, tokenizer, card, optimizer, position."""
    with new_folder(run.checkpoint(state.step), step=state.step) as folder:
        save_model(model, folder / "model", base=str(card["base"]))
        codec.tokenizer.save_pretrained(folder / "model")
        write_json(folder / "model" / CARD, {**card, "step": state.step})
        save_file(optimizer_tensors(model, optimizer), folder / "optimizer.safetensors")
        write_json(folder / "state.json", asdict(state))


def latest_state(run: RunDir, inputs: str) -> State | None:
    """Return where the newest whole checkpoint stands, or None where there is nothing yet.

    Raises:
        DamagedFile: there are checkpoints, and none of them is whole; starting again would hide that.
    """
    remove_leftovers(run.checkpoints)
    damaged = []
    for path in _newest_first(run):
        try:
            check_folder(path)
            state = _with_best(run, State(**read_json(path / "state.json")))
        except DamagedFile as error:
            say(f"skipping a checkpoint: {error}")
            damaged.append(path.name)
            continue
        if state.inputs != inputs:
            raise RecipeError(
                "was made with other data, settings or base model",
                where=str(path),
                hint="give another --out, or move the train folder away",
            )
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
    restore_optimizer(model, optimizer, load_file(folder / "optimizer.safetensors"))


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
