"""Tensors of which every process has a part: torch's DTensor, as FSDP2 leaves the weights of divided layers."""

from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Say whether other processes have other parts of a tensor."""
    return isinstance(tensor, DTensor)


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor; all of it where it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def replica_count(tensor: torch.Tensor) -> int:
    """Return how many times every part of a divided tensor is kept."""
    assert isinstance(tensor, DTensor)
    mesh = tensor.device_mesh
    return int(mesh.size(0)) if mesh.ndim > 1 else 1


def shard_like(whole: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Divide a tensor, which every process has, as a weight of its shape is."""
    if not isinstance(weight, DTensor) or whole.shape != weight.shape:
        return whole.to(weight.device)
    # Not by torch's distribute_tensor, which takes all of it to the GPU, also where parts are beside it.
    shape, start = compute_local_shape_and_global_offset(whole.shape, weight.device_mesh, weight.placements)
    with torch.no_grad():
        divided = torch.empty_like(weight, dtype=whole.dtype)
        local_shard(divided).copy_(whole[tuple(slice(at, at + size) for at, size in zip(start, shape, strict=True))])
    return divided


def shard_like_weight(name: str, whole: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Divide what an optimizer remembers under the name `weight.key` as that weight is."""
    return shard_like(whole, weights.get(name.rpartition(".")[0], whole))
