"""The forward pass of a LoRA layer in the precision that the model computes in, and in few operations.

peft keeps adapters in fp32, takes every activation to fp32 for them, and scales the whole output. The masters stay fp32
here too, but the products are made with copies in the layer's own precision (the gradient of the cast brings it back to
the masters), the small matrix is scaled instead of the output, and the last product is added to the layer's own output,
where it stands.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.nn import functional

# Where peft has LoRA beside weights of 4 and 8 bits; to import it would import bitsandbytes for everybody.
_QUANTIZED = "peft.tuners.lora.bnb"


def use_compute_dtype(model: Any) -> None:
    """Give plain LoRA layers the forward pass below; leave all others to peft."""
    for module in model.modules():
        if is_plain_lora(module) and "forward" not in vars(module):
            peft_forward = module.forward
            # Autograd lets nobody write to what layers of 8 bits return, which is a view.
            in_place = type(module).__name__ != "Linear8bitLt"
            module.forward = types.MethodType(_forward(peft_forward, in_place=in_place), module)


@contextmanager
def use_peft_forward(model: Any) -> Iterator[None]:
    """Leave all layers to peft for a while."""
    layers = [module for module in model.modules() if is_plain_lora(module) and "forward" in vars(module)]
    ours = {module: vars(module).pop("forward") for module in layers}
    try:
        yield
    finally:
        for module, forward in ours.items():
            module.forward = forward


def is_plain_lora(module: Any) -> bool:
    """Say whether a layer is LoRA and nothing more."""
    quantized = type(module).__module__ == _QUANTIZED
    if not (quantized or type(module) is Linear) or module.lora_variant or any(module.lora_bias.values()):
        return False
    weight = getattr(module.get_base_layer(), "weight", None)
    return quantized or (weight is not None and weight.dtype.is_floating_point)


def _forward(peft_forward: Any, *, in_place: bool) -> Any:
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return W x + (alpha / r) B A dropout(x) for x [..., in]."""
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        off = self.disable_adapters or self.merged or name not in self.lora_A
        other = name in self.lora_variant or self.lora_bias.get(name)  # an adapter that came later
        if off or other or kwargs:
            result: torch.Tensor = peft_forward(x, *args, **kwargs)
            return result
        down = self.lora_A[name].weight.to(x.dtype)
        up = (self.lora_B[name].weight * self.scaling[name]).to(x.dtype)
        out: torch.Tensor = self.base_layer(x, *args)
        inner = functional.linear(self.lora_dropout[name](x), down)
        whole, small = out.flatten(0, -2), inner.flatten(0, -2)
        # Nobody else reads it, and memory that is not asked for cannot be torn into pieces.
        whole = whole.addmm_(small, up.t()) if in_place else torch.addmm(whole, small, up.t())
        return whole.view_as(out)

    return forward
