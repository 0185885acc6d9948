"""Replace slow parts of a model by faster implementations, each verified on rows of the run before it is used.

The plain path is the code of transformers and peft alone. An implementation that does not reproduce its loss and
gradients is undone, with a reason for the log and the report. So training works for any model, and speed never changes
the result.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from tunesmith.data.token_dataset import Batch, TokenDataset
from tunesmith.distributed.fsdp import agree_on_reason, is_sharded, raise_if_sharded
from tunesmith.kernels.gated_mlp import patch_gated_mlp
from tunesmith.kernels.lora_fused import fuse_lora, record_shared_inputs
from tunesmith.kernels.temporary import eval_mode
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.dtensor import local_shard
from tunesmith.model.load import ComputeConfig, detach_from_mmap
from tunesmith.model.lora import use_peft_forward
from tunesmith.model.memory import free_memory, is_out_of_memory
from tunesmith.model.trainable import trained_parameters

# The allowed relative difference of loss and gradients from the plain path: rounding only.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION = 0.1
# The shortest rows, up to these numbers, are compared. In bf16, rounding changes the gradients of one row of 46 tokens
# by 5 to 11 % (SmolLM2), and those of eight rows together by 4 to 5 %.
_MAX_ROWS, _MAX_TOKENS = 8, 384
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
    batch = tokens.batch(_test_rows(tokens), pad_id).to(compute.device)
    refused: dict[str, str] = {}
    try:
        with eval_mode(model), _random_adapters(model):
            with use_peft_forward(model), record_shared_inputs(model) as groups:
                plain = _loss_and_gradients(model, batch, compute)
            fast_paths: dict[str, FastPath] = {"gated MLP": lambda: patch_gated_mlp(model)}
            if groups and is_sharded(model):  # fusing needs whole matrices
                refused["fused LoRA"] = "the layers are sharded over processes"
            elif groups:
                fast_paths["fused LoRA"] = lambda: _fuse_lora(model, groups)
            if _try(fast_paths.values(), model, batch, compute, plain):
                for name, enable in fast_paths.items():  # one of them fails, so try each alone
                    if reason := _try([enable], model, batch, compute, plain):
                        refused[name] = reason
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise_if_sharded(model, error)
        refused["fast path"] = "not enough memory to test them"
    finally:
        model.zero_grad(set_to_none=True)
        free_memory()  # of unfused weights and of the comparison
    return refused


def _test_rows(tokens: TokenDataset) -> list[int]:
    """Return the shortest rows, as many as fit into the limits, and at least one."""
    rows = tokens.shortest_first()[:_MAX_ROWS]
    while len(rows) > 1 and len(rows) * int(tokens.lengths[rows[-1]]) > _MAX_TOKENS:
        rows = rows[:-1]
    return rows


def _fuse_lora(model: Any, groups: list[list[Any]]) -> Callable[[], None]:
    """Fuse adapters, and release the mapped weight files, which would stay resident in addition to the fused copies."""
    undo = fuse_lora(groups)
    detach_from_mmap(model)
    return undo


def _try(
    fast_paths: Iterable[FastPath], model: Any, batch: Batch, compute: ComputeConfig, plain: tuple[float, torch.Tensor]
) -> str | None:
    """Enable fast paths; if they do not reproduce the plain path, undo them and return the reason."""
    with ExitStack() as undo:
        for enable in fast_paths:
            undo.callback(enable())
        try:
            loss, gradients = _loss_and_gradients(model, batch, compute)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:  # raised in the model's own code
            if is_out_of_memory(error):
                raise
            raise_if_sharded(model, error)
            return f"it fails: {str(error).splitlines()[0][:120]}"
        loss_difference = abs(loss - plain[0]) / max(abs(plain[0]), 1e-6)
        gradient_difference = float((gradients - plain[1]).norm() / plain[1].norm().clamp(min=1e-12))
        difference, reason = max(loss_difference, gradient_difference), None
        if not difference <= _TOLERANCE.get(compute.dtype, _LOW_PRECISION):  # also if it is NaN
            reason = f"its loss or gradients differ by {100 * difference:.2g} %"
        reason = agree_on_reason(model, reason)
        if not reason:
            undo.pop_all()  # keep them
        return reason


def _loss_and_gradients(model: Any, batch: Batch, compute: ComputeConfig) -> tuple[float, torch.Tensor]:
    """Return the mean loss and a sample of all gradients as one vector."""
    model.zero_grad(set_to_none=True)
    with torch.enable_grad(), compute.autocast(model.dtype):
        nll = token_loss(model, batch).nll
    loss = nll.mean()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [local_shard(w.grad).flatten() for _, w in trained_parameters(model) if w.grad is not None]
    samples = [gradient[:: max(1, len(gradient) // _SAMPLE_SIZE)] for gradient in gradients]
    return loss.item(), torch.cat([sample.to(compute.device, torch.float32) for sample in samples])


@contextmanager
def _random_adapters(model: Any) -> Iterator[None]:
    """Give the matrices B of adapters random weights, for the duration of the block."""
    ups = [weight for name, weight in trained_parameters(model) if "lora_B" in name]
    original = [weight.detach().clone() for weight in ups]
    generator = torch.Generator().manual_seed(0)
    for weight in ups:
        weight.detach().copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    try:
        yield
    finally:
        for weight, values in zip(ups, original, strict=True):
            weight.detach().copy_(values)
