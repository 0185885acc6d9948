"""The state of a sharded model: gathered on one rank, or written and read as shards by all ranks."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tunesmith.model.dtensor import shard_like_weight


def gather_full_state_dict(model: Any, *, keep: bool) -> dict[str, torch.Tensor]:
    """Return the full state dict, with CPU copies of the trained weights, which are gathered one at a time.

    A collective if the model is sharded: all ranks must call it.

    Args:
        keep: whether this rank wants the result; otherwise it returns an empty dict.
    """
    state: dict[str, torch.Tensor] = {}
    gathered: dict[int, Any] = {}  # by id: tied weights stay tied
    for name, weight in model.state_dict(keep_vars=True).items():
        if not getattr(weight, "requires_grad", False):
            whole = weight.detach() if isinstance(weight, torch.Tensor) else weight
        elif id(weight) in gathered:
            whole = gathered[id(weight)]
        else:
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            # A copy in any case: with one rank, `full_tensor` may return the shard itself.
            whole = gathered[id(weight)] = whole.detach().to("cpu", copy=True) if keep else None
        if keep:
            state[name] = whole
    return state


def write_shards(tensors: Mapping[str, torch.Tensor], folder: Path, channel: Any = None) -> None:
    """Write tensors as safetensors with torch's distributed checkpoint; each rank writes its shards.

    Replicated tensors are written by one rank. A collective: all ranks must call it, in a thread with its own channel.

    Raises:
        OSError: a rank could not write.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    # Otherwise a writer thread would copy GPU tensors on another stream than the one that computes them.
    writer.per_thread_copy_ahead = 0
    with _unwrap_checkpoint_errors():
        save(dict(tensors), storage_writer=writer, process_group=channel)


def read_shards(folder: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the stored tensors {weight.key: tensor}, each sharded like the weight in its name is sharded now."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Any] = {}
    stored: Any  # metadata of a tensor; these files hold nothing else
    for name, stored in reader.read_metadata().state_dict_metadata.items():
        empty = torch.empty(stored.size, dtype=stored.properties.dtype)
        tensors[name] = shard_like_weight(name, empty, weights)
    with _unwrap_checkpoint_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process may resume many
        load(tensors, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
    return tensors


@contextmanager
def _unwrap_checkpoint_errors() -> Iterator[None]:
    """Raise the first rank's own error instead of torch's collection of errors by rank."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
