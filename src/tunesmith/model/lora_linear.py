"""The forward pass of a LoRA layer in the precision that the model computes in, and in few operations.

peft keeps adapters in fp32, takes every activation to fp32 for them, and scales the whole output. The masters stay fp32
here too, but the products are made with copies in the layer's own precision (the gradient of the cast brings it back to
the masters), the small matrix is scaled instead of the output, and the last product is added as it is made.
"""

import types
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.nn import functional


def use_compute_dtype(model: Any) -> None:
    """Give plain LoRA layers the forward pass below; leave all others to peft."""
    for module in model.modules():
        if type(module) is Linear and _is_plain(module):
            peft_forward = module.forward
            module.forward = types.MethodType(_forward(peft_forward), module)


def _is_plain(module: Any) -> bool:
    weight = getattr(module.get_base_layer(), "weight", None)
    plain = not module.lora_variant and not any(module.lora_bias.values())
    return plain and weight is not None and weight.dtype.is_floating_point


def _forward(peft_forward: Any) -> Any:
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return W x + (alpha / r) B A dropout(x) for x [..., in]."""
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        if self.disable_adapters or self.merged or name not in self.lora_A or kwargs:
            result: torch.Tensor = peft_forward(x, *args, **kwargs)
            return result
        down = self.lora_A[name].weight.to(x.dtype)
        up = (self.lora_B[name].weight * self.scaling[name]).to(x.dtype)
        out: torch.Tensor = self.base_layer(x, *args)
        inner = functional.linear(self.lora_dropout[name](x), down)
        return torch.addmm(out.flatten(0, -2), inner.flatten(0, -2), up.t()).view_as(out)

    return forward
