"""Sharded tensors: torch's DTensor, which FSDP2 makes of the weights of sharded layers."""

from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is sharded over ranks."""
    return isinstance(tensor, DTensor)


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def replica_count(tensor: torch.Tensor) -> int:
    """Return the number of replicas of each shard of a sharded tensor."""
    assert isinstance(tensor, DTensor)
    mesh = tensor.device_mesh
    return int(mesh.size(0)) if mesh.ndim > 1 else 1


def shard_like(full: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Shard a tensor, which all ranks hold, in the same way as a weight of its shape."""
    if not isinstance(weight, DTensor) or full.shape != weight.shape:
        return full.to(weight.device)
    # Not with torch's distribute_tensor, which moves the full tensor to the GPU even if shards are offloaded.
    shape, start = compute_local_shape_and_global_offset(full.shape, weight.device_mesh, weight.placements)
    with torch.no_grad():
        sharded = torch.empty_like(weight, dtype=full.dtype)
        local_shard(sharded).copy_(full[tuple(slice(at, at + size) for at, size in zip(start, shape, strict=True))])
    return sharded


def shard_like_weight(name: str, full: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Shard the optimizer state with the name `weight.key` in the same way as that weight."""
    return shard_like(full, weights.get(name.rpartition(".")[0], full))
