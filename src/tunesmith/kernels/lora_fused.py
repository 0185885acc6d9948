"""Fuse LoRA layers that read the same tensor, such as the projections to queries, keys and values.

Their weights are concatenated into one matrix, of which each layer's own weight is a view; their matrices A are
concatenated in each forward pass. One larger matrix product replaces several, which uses the hardware better, and
backward accumulates one gradient of the input instead of computing several. Which layers share an input is recorded in
a forward pass instead of being guessed from their names.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable

from tunesmith.kernels.temporary import replace_forward
from tunesmith.model.lora import is_plain_lora


class LoraProduct(torch.autograd.Function):
    """The outputs y = W x + b + s B A x of several LoRA layers with one input and frozen W.

    Backward, with g the gradient of y and h = A x: dx = W'g + A'(s B'g), dA = (s B'g) x', dB = s g h'
    (the derivative of equation 3 of Hu et al. 2021, arXiv:2106.09685). A and B are fp32 master weights and are
    multiplied as copies in the dtype of x. With dropout, every layer draws its own mask, which is saved as booleans.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scales: Sequence[float],
        rate: float,
        *adapters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return y [..., size] of each layer.

        Args:
            x: the input [..., in].
            weight: the concatenated W of all layers, [sum of sizes, in]; `bias` likewise.
            scales: s of each layer.
            rate: the rate of dropout before A.
            adapters: A [rank, in] of each layer, then B [size, rank] of each layer.
        """
        downs, ups = adapters[: len(scales)], adapters[len(scales) :]
        flat = x.flatten(0, -2)
        down = torch.cat(downs).to(x.dtype)
        ups = tuple((up * scale).to(x.dtype) for up, scale in zip(ups, scales, strict=True))
        ranks, sizes = [len(a) for a in downs], [len(b) for b in ups]
        masks: list[torch.Tensor] = []
        if rate > 0:
            masks = [torch.empty_like(flat).bernoulli_(1 - rate) for _ in downs]  # as torch's dropout draws on a CPU
            products = zip(masks, torch.split(down, ranks), strict=True)
            inner = torch.cat([(flat * mask.div(1 - rate)) @ a.t() for mask, a in products], 1)
            masks = [mask.bool() for mask in masks]
        else:
            inner = flat @ down.t()
        outputs = torch.split(torch.nn.functional.linear(flat, weight, bias), sizes, 1)
        for out, h, up in zip(outputs, torch.split(inner, ranks, 1), ups, strict=True):
            out.addmm_(h, up.t())
        ctx.save_for_backward(flat, weight, inner, down, *ups, *masks)
        ctx.scales, ctx.ranks, ctx.shape, ctx.rate = scales, ranks, x.shape, rate
        return tuple(out.view(*x.shape[:-1], -1) for out in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients of x and of all A and B."""
        flat, weight, inner, down, *rest = ctx.saved_tensors
        ups, masks = rest[: len(gradients)], rest[len(gradients) :]
        d_outputs = [gradient.flatten(0, -2) for gradient in gradients]
        d_inner = torch.cat([d_out @ up for d_out, up in zip(d_outputs, ups, strict=True)], 1)
        factors = zip(d_outputs, torch.split(inner, ctx.ranks, 1), ctx.scales, strict=True)
        d_ups = [(d_out.t() @ h).float().mul_(scale) for d_out, h, scale in factors]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (d_outputs[0] if len(d_outputs) == 1 else torch.cat(d_outputs, 1)) @ weight
        if not masks:
            d_downs = list(torch.split((d_inner.t() @ flat).float(), ctx.ranks))
            d_x = None if d_x is None else d_x.addmm_(d_inner, down)
        else:
            d_downs = []
            parts = torch.split(d_inner, ctx.ranks, 1), torch.split(down, ctx.ranks)
            for d_h, a, mask in zip(*parts, masks, strict=True):
                scaled_mask = mask.to(flat.dtype).div_(1 - ctx.rate)
                d_downs.append((d_h.t() @ (flat * scaled_mask)).float())
                d_x = None if d_x is None else d_x.add_((d_h @ a).mul_(scaled_mask))
        d_x = None if d_x is None else d_x.view(ctx.shape)
        return d_x, None, None, None, None, *d_downs, *d_ups


@dataclass
class PendingOutputs:
    """Outputs of the fused layers of one group that were computed for an input but not requested yet.

    All groups of a model share one instance. Outputs that an aborted pass leaves here would keep its graph in memory,
    so the first group of the next pass replaces them.
    """

    group: "FusedGroup | None" = None
    input: torch.Tensor | None = None
    version: int = 0
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)


class FusedGroup:
    """Layers that read the same tensor. The first one to be called computes the outputs of all."""

    def __init__(self, layers: Sequence[Linear], pending: PendingOutputs) -> None:
        self.layers = layers
        self.pending = pending
        bases = [layer.get_base_layer() for layer in layers]
        # For a single layer, the weight is read at each call. A reference here would keep the memory-mapped file
        # resident after the layer has replaced its weight by a copy.
        self._concatenated: tuple[torch.Tensor, torch.Tensor | None] | None = None
        if len(bases) > 1:
            bias = None if bases[0].bias is None else _concatenate([base.bias for base in bases])
            self._concatenated = _concatenate([base.weight for base in bases]), bias

    def output(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Return the output of layer `index` for x [..., in]."""
        pending = self.pending
        computed = pending.group is self and pending.input is x and pending.version == _version(x)
        if not computed or index not in pending.outputs:
            pending.group, pending.input, pending.version = self, x, _version(x)
            pending.outputs = dict(enumerate(self._outputs(x)))
        out = pending.outputs.pop(index)
        if not pending.outputs:
            pending.group = pending.input = None  # do not keep the input alive
        return out

    def _outputs(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pairs = [(layer, layer.active_adapters[0]) for layer in self.layers]
        downs = [layer.lora_A[name].weight for layer, name in pairs]
        ups = [layer.lora_B[name].weight for layer, name in pairs]
        scales = [layer.scaling[name] for layer, name in pairs]
        arguments = (x, *self._weight_and_bias(), scales, _dropout_rate(*pairs[0]), *downs, *ups)
        outputs: tuple[torch.Tensor, ...] = LoraProduct.apply(*arguments)  # type: ignore[no-untyped-call]
        return outputs

    def _weight_and_bias(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the concatenated weights and biases of all layers."""
        if self._concatenated is not None:
            return self._concatenated
        base = self.layers[0].get_base_layer()
        return base.weight.data, None if base.bias is None else base.bias.data


def _version(x: torch.Tensor) -> int:
    """Return how often a tensor was written to in place; 0 in inference mode, which does not count."""
    return 0 if x.is_inference() else x._version


def _concatenate(weights: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Concatenate weights along dimension 0, make each a view of the result, and return the result."""
    result = torch.cat([weight.data for weight in weights])
    for weight, view in zip(weights, torch.split(result, [len(weight) for weight in weights]), strict=True):
        weight.data = view
    return result


@contextmanager
def record_shared_inputs(model: Any) -> Iterator[list[list[Linear]]]:
    """Record which consecutive LoRA layers read the same tensor.

    Yields the list of groups, which a forward pass in the body of the `with` statement fills.
    """
    groups: list[list[Linear]] = []
    last: list[Any] = [None, None]

    def record(layer: Any, args: tuple[Any, ...]) -> None:
        x = args[0]
        if any(layer in group for group in groups):  # the module is used twice and already has a group
            return
        if last[0] is x and last[1] == _version(x):
            groups[-1].append(layer)
        else:
            groups.append([layer])
        last[:] = [x, _version(x)]

    with ExitStack() as hooks:
        hooks.callback(last.clear)
        for layer in filter(_is_fusible, model.modules()):
            hooks.enter_context(layer.register_forward_pre_hook(record))
        yield groups


def _is_fusible(module: Any) -> bool:
    """Return whether a layer is plain LoRA on a plain linear layer with a frozen weight."""
    if not is_plain_lora(module) or type(module.get_base_layer()) is not torch.nn.Linear:
        return False
    return len(module.active_adapters) == 1 and not module.get_base_layer().weight.requires_grad


def _dropout_rate(layer: Linear, name: str) -> float:
    """Return the dropout rate before an adapter's A, 0 in evaluation mode. All layers of an adapter have one rate."""
    dropout = layer.lora_dropout[name]
    return float(dropout.p) if isinstance(dropout, torch.nn.Dropout) and dropout.training else 0.0


def fuse_lora(groups: Sequence[Sequence[Linear]]) -> Callable[[], None]:
    """Fuse the layers of each group; return a function that undoes it."""
    undo, pending = ExitStack(), PendingOutputs()
    for group in groups:
        biased = [layer for layer in group if layer.get_base_layer().bias is not None]
        unbiased = [layer for layer in group if layer.get_base_layer().bias is None]
        for layers in filter(None, (biased, unbiased)):
            fused = FusedGroup(layers, pending)
            for index, layer in enumerate(layers):
                forward = types.MethodType(_forward(fused, index, layer.forward), layer)
                undo.callback(replace_forward(layer, forward))
    return undo.close


def _forward(fused: FusedGroup, index: int, unfused: Any) -> Any:
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return W x + (alpha / r) B A x for x [..., in]."""
        if args or kwargs or any(layer.disable_adapters or layer.merged for layer in fused.layers):
            result: torch.Tensor = unfused(x, *args, **kwargs)
            return result
        return fused.output(index, x)

    return forward
