"""Estimate the disk space of a run's checkpoints and of the weights that it downloads."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tunesmith.architecture.shapes import Shapes
from tunesmith.estimate.memory import hidden_parameters, optimizer_state_gib
from tunesmith.recipe.export import AdapterExport, Export, GgufExport
from tunesmith.recipe.schema import Recipe

_GIB = 2**30
_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_QUANTIZED_BYTES = 34 / 32  # of q8_0: blocks of 32 bytes and a scale of 2
_OTHER_GIB = 0.05  # prepared rows, logs and the report


@dataclass(frozen=True, slots=True)
class DiskEstimate:
    """Disk space in GiB: `needed` for the run, and `to_fetch` for weights from the hub, with the space that is free."""

    needed: float
    free: float
    to_fetch: float
    fetch_free: float


def checkpoints_gib(recipe: Recipe, shapes: Shapes, trainable_parameters: int, total_steps: int) -> float:
    """Return the disk space of a run: for each seed the checkpoints it keeps, the best one, and one being written."""
    checkpoints = min(recipe.train.keep_checkpoints + 2, total_steps + 1)
    state = optimizer_state_gib(recipe, trainable_parameters, hidden_parameters(recipe, shapes))
    size = trainable_parameters * 4 / _GIB + state
    return (recipe.replicates or 1) * checkpoints * size + _OTHER_GIB


def export_gib(entry: Export, shapes: Shapes, trainable_parameters: int) -> float:
    """Return the disk space of an export, and of the transformers folder that a GGUF file is made from meanwhile."""
    if isinstance(entry, AdapterExport):
        return trainable_parameters * 4 / _GIB
    if isinstance(entry, GgufExport) and entry.adapter_only:  # it is proved on its base as a file in f32
        return (trainable_parameters * 4 + shapes.parameters * (4 + shapes.stored_bytes)) / _GIB
    default, folder = ("f16", shapes.stored_bytes) if isinstance(entry, GgufExport) else ("f32", 0)
    return shapes.parameters * (_BYTES.get(entry.type or default, _QUANTIZED_BYTES) + folder) / _GIB


def free_gib(path: Path) -> float:
    """Return the free space on the disk of a path, which need not exist yet."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / _GIB
