"""A forward pass of LoRA layers in the compute dtype and with few operations.

peft keeps adapters in fp32, casts every activation to fp32 for them, and scales the full output. Here the master
weights stay fp32 as well, but are multiplied as copies in the layer's dtype (autograd casts the gradients back), the
small matrix B is scaled instead of the output, and the last product is added to the layer's output in place.

The same pass serves several adapters in one batch, each for its own rows (`AdapterRows`). peft can do that as well, but
registers a hook on every layer for every forward pass, and rounds differently from the pass with one adapter.
"""

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.nn import functional

# The module of peft's LoRA layers on quantized weights. Importing it would always import bitsandbytes.
_QUANTIZED = "peft.tuners.lora.bnb"


class AdapterRows:
    """The adapter of each row of the next forward passes, for all LoRA layers of one model."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, slice | torch.Tensor]] | None = None
        self.count = 0

    @contextmanager
    def select(self, names: Sequence[str | None], device: torch.device) -> Iterator[None]:
        """Apply to each row of a batch its own adapter, whichever is active; None is the base."""
        before = self.rows, self.count
        places: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            if name is not None:
                places.setdefault(name, []).append(place)
        self.rows, self.count = [(name, _index(rows, device)) for name, rows in places.items()], len(names)
        try:
            yield
        finally:
            self.rows, self.count = before


def _index(rows: list[int], device: torch.device) -> slice | torch.Tensor:
    """Return an index of some rows: a slice, whose rows need no copy, if they are consecutive."""
    first, after = rows[0], rows[-1] + 1
    return slice(first, after) if after - first == len(rows) else torch.tensor(rows, device=device)


def use_compute_dtype(model: Any) -> AdapterRows:
    """Replace the forward pass of plain LoRA layers by the one below; all other layers keep peft's.

    Returns:
        The rows of the adapters, which all replaced passes of the model share.
    """
    known = (vars(module)["adapter_rows"] for module in model.modules() if "adapter_rows" in vars(module))
    rows = next(known, None) or AdapterRows()
    for module in model.modules():
        if is_plain_lora(module) and "forward" not in vars(module):
            module.adapter_rows, peft_forward = rows, module.forward
            # The output of 8-bit layers is a view that autograd does not allow to be changed in place.
            in_place = type(module).__name__ != "Linear8bitLt"
            module.forward = types.MethodType(_forward(peft_forward, rows, in_place=in_place), module)
    return rows


@contextmanager
def use_peft_forward(model: Any) -> Iterator[None]:
    """Restore peft's forward pass in all layers, for the duration of the block."""
    layers = [module for module in model.modules() if is_plain_lora(module) and "forward" in vars(module)]
    forwards = {module: vars(module).pop("forward") for module in layers}
    try:
        yield
    finally:
        for module, forward in forwards.items():
            module.forward = forward


def is_plain_lora(module: Any) -> bool:
    """Return whether a layer is LoRA without variants (DoRA, bias)."""
    quantized = type(module).__module__ == _QUANTIZED
    if not (quantized or type(module) is Linear) or module.lora_variant or any(module.lora_bias.values()):
        return False
    weight = getattr(module.get_base_layer(), "weight", None)
    return quantized or (weight is not None and weight.dtype.is_floating_point)


def is_plain_adapter(module: Any, name: str) -> bool:
    """Return whether the replaced forward pass of a layer computes an adapter of it, instead of peft's."""
    is_replaced = "adapter_rows" in vars(module)
    return is_replaced and name not in module.lora_variant and not module.lora_bias.get(name)


def _forward(peft_forward: Any, mixed: AdapterRows, *, in_place: bool) -> Any:
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return W x + (alpha / r) B A dropout(x) for x [..., in], with the adapter of each row."""
        if mixed.rows is not None:
            return _mixed(self, x, args, mixed, in_place=in_place)
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        is_off = self.disable_adapters or self.merged or name not in self.lora_A
        is_variant = name in self.lora_variant or self.lora_bias.get(name)  # of an adapter that was added later
        if name is None or is_off or is_variant or kwargs:
            result: torch.Tensor = peft_forward(x, *args, **kwargs)
            return result
        return _add_update(self, name, self.base_layer(x, *args), x, in_place=in_place)

    return forward


def _mixed(layer: Any, x: torch.Tensor, args: Sequence[Any], mixed: AdapterRows, *, in_place: bool) -> torch.Tensor:
    """Return W x + (alpha / r) B A x, with the adapter of each row of x [rows, ..., in] or [rows * tokens, in]."""
    out: torch.Tensor = layer.base_layer(x, *args)
    by_row, x = out.view(mixed.count, -1, out.shape[-1]), x.reshape(mixed.count, -1, x.shape[-1])
    for name, rows in mixed.rows or ():
        if name not in layer.lora_A:
            continue
        updated = _add_update(layer, name, by_row[rows], x[rows], in_place=in_place)
        if not (in_place and isinstance(rows, slice)):  # a slice is a view, which was updated in place
            by_row[rows] = updated
    return out


def _add_update(layer: Any, name: str, out: torch.Tensor, x: torch.Tensor, *, in_place: bool) -> torch.Tensor:
    """Return `out` [..., out] plus the update of one adapter for x [..., in]."""
    down = layer.lora_A[name].weight.to(x.dtype)
    up = (layer.lora_B[name].weight * layer.scaling[name]).to(x.dtype)
    inner = functional.linear(layer.lora_dropout[name](x), down)
    flat_out, flat_inner = out.flatten(0, -2), inner.flatten(0, -2)
    # In place: `out` has no other reader; this saves an allocation and avoids heap fragmentation.
    flat_out = flat_out.addmm_(flat_inner, up.t()) if in_place else torch.addmm(flat_out, flat_inner, up.t())
    return flat_out.view_as(out)
