"""A forward pass of LoRA layers in the compute dtype and with few operations.

peft keeps adapters in fp32, casts every activation to fp32 for them, and scales the full output. Here the master
weights stay fp32 as well, but are multiplied as copies in the layer's dtype (autograd casts the gradients back), the
small matrix B is scaled instead of the output, and the last product is added to the layer's output in place.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.nn import functional

# The module of peft's LoRA layers on quantized weights. Importing it would always import bitsandbytes.
_QUANTIZED = "peft.tuners.lora.bnb"


def use_compute_dtype(model: Any) -> None:
    """Replace the forward pass of plain LoRA layers by the one below; all other layers keep peft's."""
    for module in model.modules():
        if is_plain_lora(module) and "forward" not in vars(module):
            peft_forward = module.forward
            # The output of 8-bit layers is a view that autograd does not allow to be changed in place.
            in_place = type(module).__name__ != "Linear8bitLt"
            module.forward = types.MethodType(_forward(peft_forward, in_place=in_place), module)


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


def _forward(peft_forward: Any, *, in_place: bool) -> Any:
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return W x + (alpha / r) B A dropout(x) for x [..., in]."""
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        is_off = self.disable_adapters or self.merged or name not in self.lora_A
        is_variant = name in self.lora_variant or self.lora_bias.get(name)  # of an adapter that was added later
        if is_off or is_variant or kwargs:
            result: torch.Tensor = peft_forward(x, *args, **kwargs)
            return result
        down = self.lora_A[name].weight.to(x.dtype)
        up = (self.lora_B[name].weight * self.scaling[name]).to(x.dtype)
        out: torch.Tensor = self.base_layer(x, *args)
        inner = functional.linear(self.lora_dropout[name](x), down)
        flat_out, flat_inner = out.flatten(0, -2), inner.flatten(0, -2)
        # In place: `out` has no other reader; this saves an allocation and avoids heap fragmentation.
        flat_out = flat_out.addmm_(flat_inner, up.t()) if in_place else torch.addmm(flat_out, flat_inner, up.t())
        return flat_out.view_as(out)

    return forward
