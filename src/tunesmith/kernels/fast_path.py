"""What is computed in a faster way than the model's own code does, each proved on a row of the run before it is used.

A way that does not give the loss and the gradients of the plain path is undone, with a reason for the log and the
report. So everything works for any model, and nothing is faster by being something else.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from tunesmith.data.batch import Batch
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.distributed.fsdp import agree_on_reason, is_sharded, raise_if_sharded
from tunesmith.kernels.gated_mlp import patch_gated_mlp
from tunesmith.kernels.lora_fused import fuse_lora, record_shared_inputs
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.adapters import trained_parameters
from tunesmith.model.dtensor import local_shard
from tunesmith.model.load import ComputeConfig, detach_from_mmap
from tunesmith.model.lora import use_peft_forward
from tunesmith.model.memory import free_memory, is_out_of_memory

# How far loss and gradients may be from the plain path's, as a part of them: rounding only.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION = 0.1
# So many numbers of each gradient are compared: all of a full model's would be another copy of it.
_COMPARED = 4096

FastPath = Callable[[], Callable[[], None]]


def enable_fast_path(model: Any, tokens: TokenDataset, pad_id: int, compute: ComputeConfig) -> dict[str, str]:
    """Compute in every faster way that is proved equal; return the others, and why not.

    The plain path is peft's and transformers' own. Adapters begin as nothing, so they are given random numbers for the
    proof, and their own back.

    Args:
        model: as `make_trainable` returns it.
    """
    if not len(tokens):
        return {}
    batch = tokens.batch(tokens.shortest_first()[:1], pad_id).to(compute.device)
    was_training = model.training
    model.eval()  # nothing is drawn at random
    refused: dict[str, str] = {}
    try:
        with _adapters_at_work(model):
            with use_peft_forward(model), record_shared_inputs(model) as groups:
                plain = _measured(model, batch, compute)
            ways: dict[str, FastPath] = {"gated layers": lambda: patch_gated_mlp(model)}
            if groups and is_sharded(model):  # what is put together must be there as a whole
                refused["stacked adapters"] = "the layers are divided over processes"
            elif groups:
                ways["stacked adapters"] = lambda: _stacked(model, groups)
            if _why_not(lambda: _take_all(ways.values()), model, batch, compute, plain):
                for name, take in ways.items():  # which of them is it?
                    if reason := _why_not(take, model, batch, compute, plain):
                        refused[name] = reason
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise_if_sharded(model, error)
        refused["faster ways"] = "memory does not suffice to try them"
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        free_memory()  # where weights were before they were put together, and what the proof held
    return refused


def _stacked(model: Any, groups: list[list[Any]]) -> Callable[[], None]:
    """Stack adapters; the file of the weights would stay resident beside those that were put together."""
    undo = fuse_lora(groups)
    detach_from_mmap(model)
    return undo


def _take_all(ways: Iterable[FastPath]) -> Callable[[], None]:
    """Take ways one after the other; return what undoes them."""
    with ExitStack() as undos:
        for take in ways:
            undos.callback(take())
        return undos.pop_all().close


def _why_not(
    take: FastPath, model: Any, batch: Batch, compute: ComputeConfig, plain: tuple[float, torch.Tensor]
) -> str | None:
    """Take a way; where it is not equal to the plain path undo it and return why."""
    undo = take()
    try:
        loss, gradient = _measured(model, batch, compute)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:  # somebody else's forward
        undo()
        if is_out_of_memory(error):
            raise
        raise_if_sharded(model, error)
        return f"it does not work: {str(error).splitlines()[0][:120]}"
    most = _TOLERANCE.get(compute.dtype, _LOW_PRECISION)
    off = max(
        abs(loss - plain[0]) / max(abs(plain[0]), 1e-6),
        float((gradient - plain[1]).norm() / plain[1].norm().clamp(min=1e-12)),
    )
    reason = agree_on_reason(model, None if off <= most else f"its loss or gradients are off by {100 * off:.2g} %")
    if reason:
        undo()
    return reason


def _measured(model: Any, batch: Batch, compute: ComputeConfig) -> tuple[float, torch.Tensor]:
    """Return the mean loss, and numbers of all its gradients in one line."""
    model.zero_grad(set_to_none=True)
    with torch.enable_grad(), compute.autocast(model.dtype):
        nll = token_loss(model, batch).nll
    loss = nll.mean()
    loss.backward()  # type: ignore[no-untyped-call]
    some = [
        local_shard(weight.grad)
        .flatten()[:: max(1, local_shard(weight).numel() // _COMPARED)]
        .to(compute.device, torch.float32)
        for _, weight in trained_parameters(model)
        if weight.grad is not None
    ]
    return loss.item(), torch.cat(some)


@contextmanager
def _adapters_at_work(model: Any) -> Iterator[None]:
    """Give the matrices B of adapters random numbers for a while."""
    ups = {name: weight for name, weight in trained_parameters(model) if "lora_B" in name}
    kept = {name: weight.detach().clone() for name, weight in ups.items()}
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in ups.values():
            weight.copy_(torch.randn(weight.shape, generator=drawn) * 0.02)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in ups.items():
                weight.copy_(kept[name])
