"""Sharding a model's layers over the ranks; each layer is gathered only while it computes.

By torch's FSDP2, `fully_shard` (Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2020, arXiv:1910.02054). Each
rank keeps its shard of every layer's matrices, of their gradients and of their optimizer state. Replicated on all ranks
are vectors, adapters and everything outside the layers: embeddings, final norm and output layer.

Gathering a layer is a collective, so all ranks must make the same number of forward passes. A rank that has none left
makes idle ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard, share_comm_ctx

from tunesmith.core.errors import DoesNotFit, RecipeError
from tunesmith.data.fit import MemoryBudget
from tunesmith.distributed.process_group import ProcessGroup, current_group, is_peer_failure, peer_failures_as_errors
from tunesmith.estimate.hardware import process_memory_limit_gib
from tunesmith.model.dtensor import is_dtensor
from tunesmith.model.load import ComputeConfig, without_adapter
from tunesmith.model.memory import is_out_of_memory
from tunesmith.recipe.launch import Sharding

T = TypeVar("T")


def shard(
    model: Any,
    compute: ComputeConfig,
    group: ProcessGroup,
    *,
    by_node: bool = False,
    offload: bool = False,
    master_dtype: torch.dtype | None = None,
) -> None:
    """Shard a model's layers over the ranks of a group, and move the model to the compute device.

    Args:
        model: a model on the CPU, as `make_trainable` returns it. It never has to fit on a GPU as a whole.
        by_node: shard within each machine and replicate across machines, which reduces traffic between them.
        offload: keep shards in CPU memory and copy one layer at a time to the GPU.
        master_dtype: convert all weights to this dtype after sharding, so each rank converts only its shards.

    Raises:
        RecipeError: transformers does not list the model's layer classes, or machines have different numbers of ranks.
    """
    # The classes of modules that must not be split over devices.
    names = getattr(without_adapter(model), "_no_split_modules", None) or ()
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    stacks: list[list[Any]] = [[layer for layer in modules if type(layer).__name__ in names] for modules in lists]
    layers = [layer for stack in stacks for layer in stack]
    if not layers:
        message, hint = "this model has no layers that can be sharded", "use `launch.sharding: none`"
        raise RecipeError(message, where="model.base", hint=hint, code="sharding-unsupported")
    mesh, stored_dtype = _mesh(compute, group, by_node=by_node), master_dtype or model.dtype
    # Layers are gathered in the compute dtype, and gradients are summed in the dtype of the stored weights.
    gather_dtype = compute.dtype if compute.dtype.itemsize < stored_dtype.itemsize else None
    reduce_dtype = stored_dtype if gather_dtype else None
    options: dict[str, Any] = {"mp_policy": MixedPrecisionPolicy(gather_dtype, reduce_dtype, cast_forward_inputs=False)}
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=compute.device.type == "cuda")
    has_adapters = not all(weight.requires_grad for weight in model.parameters())
    for layer in layers:
        ignored = {w for w in layer.parameters() if w.ndim < 2 or (has_adapters and w.requires_grad)}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=ignored, **options)
        layer.set_gradient_divide_factor(1.0)  # losses are divided by the whole step's divisor already
        layer.set_force_sum_reduction_for_comms(True)
        layer.set_reduce_scatter_unused_params(True)  # otherwise ranks that route to different experts would deadlock
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not is_dtensor(tensor):  # fully_shard places DTensors itself
                tensor.data = tensor.to(compute.device)  # moves a quantized weight with its scales
    if master_dtype:
        model.to(master_dtype)
    share_comm_ctx(layers)
    for stack in stacks:
        for layer, following in pairwise(stack):
            layer.set_modules_to_forward_prefetch([following])
    for layer in layers:  # gather once now: buffers first allocated in inference mode could not be trained later
        layer.unshard()
        layer.reshard()


def load_device(compute: ComputeConfig, sharding: Sharding) -> ComputeConfig:
    """Return where to load a model: on the CPU if it is to be sharded, since it need not fit on one GPU."""
    return compute if sharding == "none" else replace(compute, device=torch.device("cpu"))


def memory_budget(compute: ComputeConfig, group: ProcessGroup) -> MemoryBudget:
    """Return the compute precision and the memory of this rank. Ranks on one machine share its CPU memory."""
    if compute.device.type == "cuda":
        return MemoryBudget(compute.dtype.itemsize, True, torch.cuda.mem_get_info(compute.device)[0] / 2**30)
    return MemoryBudget(compute.dtype.itemsize, False, process_memory_limit_gib() / group.rank_info.local_world_size)


def _mesh(compute: ComputeConfig, group: ProcessGroup, *, by_node: bool) -> Any:
    info = group.rank_info
    if not by_node:
        return init_device_mesh(compute.device.type, (info.world_size,), mesh_dim_names=("parts",))
    if len(set(group.all_gather(info.local_world_size))) > 1:
        message, hint = "machines have different numbers of processes", "use `full`, or start as many on each machine"
        raise RecipeError(message, where="launch.sharding", hint=hint, code="uneven-processes")
    shape = (info.world_size // info.local_world_size, info.local_world_size)
    return init_device_mesh(compute.device.type, shape, mesh_dim_names=("copies", "parts"))


def sharded_layers(model: Any) -> list[Any]:
    """Return the layers that are sharded; empty if the model is replicated."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def is_sharded(model: Any) -> bool:
    """Return whether the model's layers are sharded."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def agree_on_reason(model: Any, reason: str | None) -> str | None:
    """Return the first rank's reason that is not None if the model is sharded, so that all ranks decide alike."""
    if not is_sharded(model):
        return reason
    return next(filter(None, current_group().all_gather(reason)), None)


def raise_if_sharded(model: Any, error: Exception) -> None:
    """Raise an error of a sharded forward pass that other ranks may not have, so that no common fallback is possible.

    An error that occurs on all ranks is not raised: the layers are reset to their state before the pass.

    Raises:
        DoesNotFit: this rank ran out of memory.
    """
    if not is_sharded(model):
        return
    if is_out_of_memory(error):
        message = "out of memory for a single row, although the layers are sharded over all processes"
        hint = "lower data.max_tokens_per_example, or use more processes"
        raise DoesNotFit(message, hint=hint, code="out-of-memory") from error
    if is_peer_failure(error):
        raise error
    for layer in sharded_layers(model):
        layer.reset_iter_state()


@contextmanager
def lockstep_forward(model: Any, group: ProcessGroup) -> Iterator[None]:
    """Let each rank call a sharded model any number of times inside the block; ranks that are done make idle calls.

    Does nothing if the model is replicated.

    Raises:
        ProcessLost: another rank is gone.
    """
    if not is_sharded(model):
        yield
        return
    # The decoder's layers, because text alone never reaches a vision tower.
    layers = sharded_layers(without_adapter(model).get_decoder())

    def count_call(*_: Any) -> None:
        group.sum(1)

    with peer_failures_as_errors():
        with layers[0].register_forward_pre_hook(count_call, prepend=True):
            yield
        ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        with torch.inference_mode():
            while group.sum(0)[0]:
                model(input_ids=ids, use_cache=False)
    for layer in layers:  # without a backward pass, FSDP's record of forward calls would keep growing
        layer.reset_iter_state()


def lockstep_micro_batches(
    group: ProcessGroup, own: Iterator[T], idle: Callable[[], T], *, sharded: bool
) -> Iterator[tuple[T, bool]]:
    """Yield (own micro-batch, True); if sharded, then (idle micro-batch, False) until all ranks have no more."""
    for micro_batch in own:
        if sharded:
            group.sum(1)
        yield micro_batch, True
    while sharded and group.sum(0)[0]:
        yield idle(), False
