"""LoRA layers that read the same tensor, multiplied as one, such as queries, keys and values.

Their weights stand under each other in one matrix, of which each layer's own is a view, and so do their small matrices
A for the length of a pass. One product then does what three did, each with more columns, which is what matrix units
want, and the way back adds to one gradient of the input instead of making three. Which layers belong together is seen
in a pass and not read off their names.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable

from tunesmith.model.lora import is_plain_lora


class LoraProduct(torch.autograd.Function):
    """Products of one input with several layers W, of which W is not trained: y = W x + b + s B A x for each.

    Backward, with g the gradient of y and h = A x: dx = W'g + A'(s B'g), dA = (s B'g) x', dB = s g h'
    (Hu et al. 2021, arXiv:2106.09685, equation 3, differentiated). A and B are fp32 masters, multiplied as copies in
    the precision of x. With dropout every layer draws which numbers of x its A sees, and a bit of each is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        sizes: Sequence[int],
        scales: Sequence[float],
        rate: float,
        *adapters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return y [..., size] of every layer.

        Args:
            x: [..., in].
            weight: of all layers under each other, [sum of sizes, in]; `bias` likewise.
            sizes: how many numbers each layer gives.
            scales: s of each layer.
            rate: of dropout before A.
            adapters: A [rank, in] of every layer, then B [size, rank] of every layer.
        """
        downs, ups = adapters[: len(sizes)], adapters[len(sizes) :]
        flat = x.flatten(0, -2)
        down = torch.cat(downs).to(x.dtype)
        ups = tuple((up * scale).to(x.dtype) for up, scale in zip(ups, scales, strict=True))
        ranks = [len(one) for one in downs]
        kept: list[torch.Tensor] = []
        if rate > 0:
            kept = [torch.empty_like(flat).bernoulli_(1 - rate) for _ in sizes]  # as torch's dropout draws on a CPU
            products = zip(kept, torch.split(down, ranks), strict=True)
            inner = torch.cat([(flat * seen.div(1 - rate)) @ a.t() for seen, a in products], 1)
            kept = [seen.bool() for seen in kept]
        else:
            inner = flat @ down.t()
        whole = torch.nn.functional.linear(flat, weight, bias)
        outputs = torch.split(whole, list(sizes), 1)
        for out, small, up in zip(outputs, torch.split(inner, ranks, 1), ups, strict=True):
            out.addmm_(small, up.t())
        ctx.save_for_backward(flat, weight, inner, down, *ups, *kept)
        ctx.scales, ctx.ranks, ctx.shape, ctx.rate = scales, ranks, x.shape, rate
        return tuple(out.view(*x.shape[:-1], -1) for out in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients of x and of all A and B."""
        flat, weight, inner, down, *more = ctx.saved_tensors
        ups, kept = more[: len(gradients)], more[len(gradients) :]
        flows = [gradient.flatten(0, -2) for gradient in gradients]
        back = torch.cat([flow @ up for flow, up in zip(flows, ups, strict=True)], 1)
        d_ups = [
            (flow.t() @ small).float().mul_(scale)
            for flow, small, scale in zip(flows, torch.split(inner, ctx.ranks, 1), ctx.scales, strict=True)
        ]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (flows[0] if len(flows) == 1 else torch.cat(flows, 1)) @ weight
        if not kept:
            d_downs = list(torch.split((back.t() @ flat).float(), ctx.ranks))
            d_x = None if d_x is None else d_x.addmm_(back, down)
        else:
            d_downs = []
            parts = torch.split(back, ctx.ranks, 1), torch.split(down, ctx.ranks)
            for small, a, seen in zip(*parts, kept, strict=True):
                mask = seen.to(flat.dtype).div_(1 - ctx.rate)
                d_downs.append((small.t() @ (flat * mask)).float())
                d_x = None if d_x is None else d_x.add_((small @ a).mul_(mask))
        d_x = None if d_x is None else d_x.view(ctx.shape)
        return d_x, None, None, None, None, None, *d_downs, *d_ups


@dataclass
class _Waiting:
    """What layers of one stack have been given beforehand: by whom, for which tensor, and what is not taken yet.

    There is one for a whole model. What a pass that broke off has left there would hold all that pass had computed; the
    first layer of the next pass takes its place.
    """

    of: "_Stack | None" = None
    read: torch.Tensor | None = None
    version: int = 0
    outputs: list[torch.Tensor | None] = field(default_factory=list)


class _Stack:
    """Layers that read the same tensor: the first that is asked computes what all of them give."""

    def __init__(self, layers: Sequence[Linear], waiting: _Waiting) -> None:
        self.layers = layers
        self._waiting = waiting
        bases = [layer.get_base_layer() for layer in layers]
        self._sizes = [base.out_features for base in bases]
        # A layer that stands alone is asked for its weight each time: kept here, what the layer replaces (memory of the
        # mapped file) would stay resident.
        self._shared: tuple[torch.Tensor, torch.Tensor | None] | None = None
        if len(bases) > 1:
            bias = None if bases[0].bias is None else _shared([base.bias for base in bases])
            self._shared = _shared([base.weight for base in bases]), bias

    def output(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer at a place gives for x [..., in]."""
        waiting = self._waiting
        known = waiting.of is self and waiting.read is x and waiting.version == _version(x)
        if not known or waiting.outputs[place] is None:
            waiting.of, waiting.read, waiting.version = self, x, _version(x)
            waiting.outputs = list(self._outputs(x))
        out, waiting.outputs[place] = waiting.outputs[place], None
        if all(one is None for one in waiting.outputs):
            waiting.of = waiting.read = None  # nothing may be kept alive by layers that have done their work
        assert out is not None
        return out

    def _outputs(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        names = [layer.active_adapters[0] for layer in self.layers]
        pairs = list(zip(self.layers, names, strict=True))
        downs = [layer.lora_A[name].weight for layer, name in pairs]
        ups = [layer.lora_B[name].weight for layer, name in pairs]
        scales = [layer.scaling[name] for layer, name in pairs]
        fixed = (*self._matrix(), self._sizes, scales, _dropout(*pairs[0]))
        made: tuple[torch.Tensor, ...] = LoraProduct.apply(x, *fixed, *downs, *ups)  # type: ignore[no-untyped-call]
        return made

    def _matrix(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the weights and the biases of all layers under each other."""
        if self._shared is not None:
            return self._shared
        base = self.layers[0].get_base_layer()
        return base.weight.data, None if base.bias is None else base.bias.data


def _version(x: torch.Tensor) -> int:
    """Return how often a tensor was written to; in inference mode nobody counts."""
    return 0 if x.is_inference() else x._version


def _shared(weights: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Put weights under each other in one tensor, and let each be a view of it; return it."""
    whole = torch.cat([weight.data for weight in weights])
    for weight, part in zip(weights, torch.split(whole, [len(weight) for weight in weights]), strict=True):
        weight.data = part
    return whole


@contextmanager
def record_shared_inputs(model: Any) -> Iterator[list[list[Linear]]]:
    """Yield a list that a pass inside fills: LoRA layers that were given the very same tensor, one after another."""
    groups: list[list[Linear]] = []
    last: list[Any] = [None, None]

    def see(layer: Any, args: tuple[Any, ...]) -> None:
        x = args[0]
        if any(layer in group for group in groups):  # it is there a second time, and has its place
            return
        if last[0] is x and last[1] == _version(x):
            groups[-1].append(layer)
        else:
            groups.append([layer])
        last[:] = [x, _version(x)]

    layers = [module for module in model.modules() if _is_stackable(module)]
    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        yield groups
    finally:
        last.clear()
        for hook in hooks:
            hook.remove()


def _is_stackable(module: Any) -> bool:
    """Say whether a layer is plain LoRA over a plain matrix that is not trained."""
    if not is_plain_lora(module) or type(module.get_base_layer()) is not torch.nn.Linear:
        return False
    return len(module.active_adapters) == 1 and not module.get_base_layer().weight.requires_grad


def _dropout(layer: Linear, name: str) -> float:
    """Return the rate of dropout before an adapter's A, in the layer's mode; one adapter has one rate."""
    made = layer.lora_dropout[name]
    return float(made.p) if isinstance(made, torch.nn.Dropout) and made.training else 0.0


def fuse_lora(groups: Sequence[Sequence[Linear]]) -> Callable[[], None]:
    """Multiply the layers of each group as one from now on; return what undoes it."""
    before: dict[Linear, Any] = {}
    waiting = _Waiting()
    for group in groups:
        biased = [layer for layer in group if layer.get_base_layer().bias is not None]
        unbiased = [layer for layer in group if layer.get_base_layer().bias is None]
        for layers in filter(None, (biased, unbiased)):
            together = _Stack(layers, waiting)
            for place, layer in enumerate(layers):
                before[layer] = vars(layer).get("forward")
                layer.forward = types.MethodType(_forward(together, place, layer.forward), layer)

    def undo() -> None:
        for layer, forward in before.items():
            del layer.forward
            if forward is not None:
                layer.forward = forward

    return undo


def _forward(together: _Stack, place: int, alone: Any) -> Any:
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return W x + (alpha / r) B A x for x [..., in]."""
        if args or kwargs or any(layer.disable_adapters or layer.merged for layer in together.layers):
            result: torch.Tensor = alone(x, *args, **kwargs)
            return result
        return together.output(place, x)

    return forward
