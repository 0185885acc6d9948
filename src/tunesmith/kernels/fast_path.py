"""Replace slow parts of a model by faster implementations, each verified on a row of the run before it is used.

The plain path is the code of transformers and peft alone. An implementation that does not reproduce its loss and
gradients is undone, with a reason for the log and the report. So training works for any model, and speed never changes
the result.
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

# The allowed relative difference of loss and gradients from the plain path: rounding only.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION = 0.1
# The number of elements of each gradient to compare; comparing all would take as much memory as the model.
_SAMPLE_SIZE = 4096

# A function that enables an implementation, and returns a function that undoes it.
FastPath = Callable[[], Callable[[], None]]


def enable_fast_path(model: Any, tokens: TokenDataset, pad_id: int, compute: ComputeConfig) -> dict[str, str]:
    """Enable each fast path that reproduces the plain path; return the others as {name: reason}.

    New adapters change nothing, so they get random weights for the comparison and their own back.

    Args:
        model: a model that `make_trainable` returned.
    """
    if not len(tokens):
        return {}
    batch = tokens.batch(tokens.shortest_first()[:1], pad_id).to(compute.device)
    was_training = model.training
    model.eval()  # no dropout
    refused: dict[str, str] = {}
    try:
        with _random_adapters(model):
            with use_peft_forward(model), record_shared_inputs(model) as groups:
                plain = _loss_and_gradients(model, batch, compute)
            fast_paths: dict[str, FastPath] = {"gated MLP": lambda: patch_gated_mlp(model)}
            if groups and is_sharded(model):  # fusing needs whole matrices
                refused["fused LoRA"] = "the layers are sharded over processes"
            elif groups:
                fast_paths["fused LoRA"] = lambda: _fuse_lora(model, groups)
            if _try(lambda: _enable_all(fast_paths.values()), model, batch, compute, plain):
                for name, enable in fast_paths.items():  # one of them fails, so try each alone
                    if reason := _try(enable, model, batch, compute, plain):
                        refused[name] = reason
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise_if_sharded(model, error)
        refused["fast path"] = "not enough memory to test them"
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        free_memory()  # of unfused weights and of the comparison
    return refused


def _fuse_lora(model: Any, groups: list[list[Any]]) -> Callable[[], None]:
    """Fuse adapters, and release the mapped weight files, which would stay resident in addition to the fused copies."""
    undo = fuse_lora(groups)
    detach_from_mmap(model)
    return undo


def _enable_all(fast_paths: Iterable[FastPath]) -> Callable[[], None]:
    """Enable several fast paths; return a function that undoes them."""
    with ExitStack() as undos:
        for enable in fast_paths:
            undos.callback(enable())
        return undos.pop_all().close


def _try(
    enable: FastPath, model: Any, batch: Batch, compute: ComputeConfig, plain: tuple[float, torch.Tensor]
) -> str | None:
    """Enable a fast path; if it does not reproduce the plain path, undo it and return the reason."""
    undo = enable()
    try:
        loss, gradients = _loss_and_gradients(model, batch, compute)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:  # raised in the model's own code
        undo()
        if is_out_of_memory(error):
            raise
        raise_if_sharded(model, error)
        return f"it fails: {str(error).splitlines()[0][:120]}"
    tolerance = _TOLERANCE.get(compute.dtype, _LOW_PRECISION)
    difference = max(
        abs(loss - plain[0]) / max(abs(plain[0]), 1e-6),
        float((gradients - plain[1]).norm() / plain[1].norm().clamp(min=1e-12)),
    )
    reason = None
    if not difference <= tolerance:  # also if it is NaN
        reason = f"its loss or gradients differ by {100 * difference:.2g} %"
    reason = agree_on_reason(model, reason)
    if reason:
        undo()
    return reason


def _loss_and_gradients(model: Any, batch: Batch, compute: ComputeConfig) -> tuple[float, torch.Tensor]:
    """Return the mean loss and a sample of all gradients as one vector."""
    model.zero_grad(set_to_none=True)
    with torch.enable_grad(), compute.autocast(model.dtype):
        nll = token_loss(model, batch).nll
    loss = nll.mean()
    loss.backward()  # type: ignore[no-untyped-call]
    samples = [
        local_shard(weight.grad)
        .flatten()[:: max(1, local_shard(weight).numel() // _SAMPLE_SIZE)]
        .to(compute.device, torch.float32)
        for _, weight in trained_parameters(model)
        if weight.grad is not None
    ]
    return loss.item(), torch.cat(samples)


@contextmanager
def _random_adapters(model: Any) -> Iterator[None]:
    """Give the matrices B of adapters random weights, for the duration of the block."""
    ups = {name: weight for name, weight in trained_parameters(model) if "lora_B" in name}
    original = {name: weight.detach().clone() for name, weight in ups.items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in ups.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in ups.items():
                weight.copy_(original[name])
