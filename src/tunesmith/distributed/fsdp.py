"""A model in parts: the weights of each layer are divided over processes, and whole in each only while it computes.

By torch's FSDP2, `fully_shard` (Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2020, arXiv:1910.02054). Each
process keeps its part of the matrices of all layers, of their gradients and of what the optimizer remembers of them.
Whole in all processes stay vectors, adapters, and what is outside of layers: embeddings, last norm, output layer.

A layer is put together by all processes at once, so all must make the same number of passes: who has none left makes
idle ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    share_comm_ctx,
)

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
    masters: torch.dtype | None = None,
) -> None:
    """Divide the layers of a model over the processes of a group, and bring all of it to the machine's device.

    Args:
        model: as `make_trainable` returns it, on a processor: whole it need never be on a GPU.
        by_node: divide over the processes of each machine, and keep a copy on every machine: less goes between them.
        offload: keep parts beside the GPU, and bring layers to it one by one.
        masters: what all weights are then kept in, each process its parts; default what they are in.

    Raises:
        RecipeError: it has no layers that transformers knows of, or machines have different numbers of processes.
    """
    stacks: list[list[Any]] = [[layer for layer in stack if _is_layer(layer, model)] for stack in _stacks(model)]
    layers = [layer for stack in stacks for layer in stack]
    if not layers:
        raise RecipeError("has no layers that could be divided", where="model.base", hint="use `launch.sharding: none`")
    mesh, kept = _mesh(compute, group, by_node=by_node), masters or model.dtype
    # Layers are put together as what they compute in, and gradients are added up as what weights are kept in.
    lower = compute.dtype if compute.dtype.itemsize < kept.itemsize else None
    policy = MixedPrecisionPolicy(lower, reduce_dtype=kept if lower else None, cast_forward_inputs=False)
    place = CPUOffloadPolicy(pin_memory=compute.device.type == "cuda") if offload else OffloadPolicy()
    adapted = not all(weight.requires_grad for weight in model.parameters())
    for layer in layers:
        whole = {weight for weight in layer.parameters() if weight.ndim < 2 or (adapted and weight.requires_grad)}
        fully_shard(
            layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy, offload_policy=place, ignored_params=whole
        )
        layer.set_gradient_divide_factor(1.0)  # losses are parts of one mean already
        layer.set_force_sum_reduction_for_comms(True)
        layer.set_reduce_scatter_unused_params(True)  # or who has other experts at work would wait for ever
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not is_dtensor(tensor):  # or it is where it belongs
                tensor.data = tensor.to(compute.device)  # of quantized weights, with their scales
    if masters:
        model.to(masters)
    share_comm_ctx(layers)
    for stack in stacks:
        for layer, following in pairwise(stack):
            layer.set_modules_to_forward_prefetch([following])
    for layer in layers:  # what is made in inference mode could not be trained
        layer.unshard()
        layer.reshard()


def load_device(compute: ComputeConfig, sharding: Sharding) -> ComputeConfig:
    """Return where a model is read: what is divided need not fit anywhere as a whole but beside the processor."""
    return compute if sharding == "none" else replace(compute, device=torch.device("cpu"))


def memory_budget(compute: ComputeConfig, group: ProcessGroup) -> MemoryBudget:
    """Return what a pass is computed in and the memory that this process has for it: processors are shared."""
    if compute.device.type == "cuda":
        return MemoryBudget(compute.dtype.itemsize, True, torch.cuda.mem_get_info(compute.device)[0] / 2**30)
    return MemoryBudget(compute.dtype.itemsize, False, process_memory_limit_gib() / group.rank_info.local_world_size)


def _stacks(model: Any) -> Iterator[torch.nn.ModuleList]:
    return (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


def _is_layer(module: Any, model: Any) -> bool:
    """Say whether a module is what transformers itself would not cut into pieces."""
    return type(module).__name__ in (getattr(without_adapter(model), "_no_split_modules", None) or ())


def _mesh(compute: ComputeConfig, group: ProcessGroup, *, by_node: bool) -> Any:
    place = group.rank_info
    if not by_node:
        return init_device_mesh(compute.device.type, (place.world_size,), mesh_dim_names=("parts",))
    if len(set(group.all_gather(place.local_world_size))) > 1:
        raise RecipeError(
            "machines have different numbers of processes",
            where="launch.sharding",
            hint="use `full`, or as many on all",
        )
    shape = (place.world_size // place.local_world_size, place.local_world_size)
    return init_device_mesh(compute.device.type, shape, mesh_dim_names=("copies", "parts"))


def sharded_layers(model: Any) -> list[Any]:
    """Return the layers that are divided; none where every process has all of the model."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def is_sharded(model: Any) -> bool:
    """Say whether layers are divided."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def agree_on_reason(model: Any, reason: str | None) -> str | None:
    """Return a reason of any process, where layers are divided: all have to go the same way."""
    if not is_sharded(model):
        return reason
    return next(filter(None, current_group().all_gather(reason)), None)


def raise_if_sharded(model: Any, error: Exception) -> None:
    """Raise what one process alone may have met in a pass that others make too; there is no other way for it to go.

    An error that all meet leaves layers as they were before the pass.

    Raises:
        DoesNotFit: memory did not suffice.
    """
    if not is_sharded(model):
        return
    if is_out_of_memory(error):
        raise DoesNotFit(
            "memory does not suffice for one row, with every process keeping its part of the layers",
            hint="lower data.max_tokens_per_example, or take more processes",
        ) from error
    if is_peer_failure(error):
        raise error
    for layer in sharded_layers(model):
        layer.reset_iter_state()


@contextmanager
def lockstep_forward(model: Any, group: ProcessGroup) -> Iterator[None]:
    """Inside, each process may call a divided model as often as it has to; who leaves first makes idle calls.

    Where every process has all of the model, nothing is done.

    Raises:
        ProcessLost: another process is gone.
    """
    if not is_sharded(model):
        yield
        return
    # Those of the part that writes: of a model that also sees, others have none to do.
    layers = sharded_layers(without_adapter(model).get_decoder())

    def meet(*_: Any) -> None:
        group.sum(1)

    with peer_failures_as_errors():
        hook = layers[0].register_forward_pre_hook(meet, prepend=True)
        try:
            yield
        finally:
            hook.remove()
        ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        with torch.inference_mode():
            while group.sum(0)[0]:
                model(input_ids=ids, use_cache=False)
    for layer in layers:  # what is only called, and never learns, is remembered call by call
        layer.reset_iter_state()


def lockstep_micro_batches(
    group: ProcessGroup, own: Iterator[T], idle: Callable[[], T], *, sharded: bool
) -> Iterator[tuple[T, bool]]:
    """Yield own passes; then, where layers are divided, idle ones as long as others have some, marked by False."""
    for one in own:
        if sharded:
            group.sum(1)
        yield one, True
    while sharded and group.sum(0)[0]:
        yield idle(), False
