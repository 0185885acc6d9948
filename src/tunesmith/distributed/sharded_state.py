"""The state of a sharded model: put together in one process, or written and read in parts by all."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tunesmith.model.dtensor import shard_like_weight


def gather_full_state_dict(model: Any, *, keep: bool) -> dict[str, torch.Tensor]:
    """Return the state of a model, whole, with copies on the processor of what is trained, one weight after the other.

    Args:
        keep: whether this process wants it; where weights are divided, all have to take part.
    """
    found: dict[str, torch.Tensor] = {}
    seen: dict[int, Any] = {}  # what two names share stays shared
    for name, weight in model.state_dict(keep_vars=True).items():
        if not getattr(weight, "requires_grad", False):
            whole = weight.detach() if isinstance(weight, torch.Tensor) else weight
        elif id(weight) in seen:
            whole = seen[id(weight)]
        else:
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            # Also where what was put together is the part itself, since there is only one.
            whole = seen[id(weight)] = whole.detach().to("cpu", copy=True) if keep else None
        if keep:
            found[name] = whole
    return found


def write_shards(tensors: Mapping[str, torch.Tensor], folder: Path, channel: Any = None) -> None:
    """Write tensors by torch's distributed checkpoints, each process its own parts, as safetensors.

    What all have is written by one. All processes have to take part, over a channel of their own in a thread beside.

    Raises:
        OSError: a process could not write, for the reason that it says.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    # Or a thread would look after copies of a GPU's tensors by a stream that is not theirs.
    writer.per_thread_copy_ahead = 0
    with _unwrap_checkpoint_errors():
        save(dict(tensors), storage_writer=writer, process_group=channel)


def read_shards(folder: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return written tensors {weight.key}, each divided as the weight that its name begins with is divided now."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    found: dict[str, Any] = {}
    stored: Any  # all are tensors in these files
    for name, stored in reader.read_metadata().state_dict_metadata.items():
        empty = torch.empty(stored.size, dtype=stored.properties.dtype)
        found[name] = shard_like_weight(name, empty, weights)
    with _unwrap_checkpoint_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one may go on from what many left
        load(found, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
    return found


@contextmanager
def _unwrap_checkpoint_errors() -> Iterator[None]:
    """Raise what a process met instead of torch's list of who met what."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
