"""AdamW over what is trained, and its state as plain tensors."""

import math
from typing import Any

import torch

from tunesmith.core.errors import DamagedFile
from tunesmith.model.adapters import trained_parameters
from tunesmith.recipe.schema import Train


def make_optimizer(model: Any, train: Train) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); biases and norms, being vectors, do not decay."""
    weights = [weight for _, weight in trained_parameters(model)]
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        fused=True,
    )


def optimizer_tensors(model: Any, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as {parameter.moment: tensor}."""
    return {
        f"{name}.{key}": value
        for name, weight in trained_parameters(model)
        for key, value in optimizer.state[weight].items()
    }


def restore_optimizer(model: Any, optimizer: torch.optim.AdamW, tensors: dict[str, torch.Tensor]) -> None:
    """Put saved state back; raise DamagedFile unless it is that of the trained weights."""
    left = dict(tensors)
    for name, weight in trained_parameters(model):
        state = {key: left.pop(f"{name}.{key}", None) for key in ("step", "exp_avg", "exp_avg_sq")}
        if all(value is None for value in state.values()):
            continue  # a weight that no row has reached yet, such as an expert's, has no state
        if any(value is None for value in state.values()):
            raise DamagedFile(f"holds only a part of the optimizer state of {name}")
        # The step counter stays on the CPU unless the fused optimizer keeps it beside the weight.
        optimizer.state[weight] = {key: value.to(weight.device) for key, value in state.items() if value is not None}
    if left or not tensors:
        raise DamagedFile(f"is not the optimizer state of this model: {sorted(left)[:3]}")


def clip_gradients(model: Any, most: float) -> float:
    """Scale gradients down to a norm of at most `most`; return the norm before. Nothing is scaled if not finite."""
    weights = [weight for _, weight in trained_parameters(model) if weight.grad is not None]
    norm = float(torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None]))
    if math.isfinite(norm):
        torch.nn.utils.clip_grads_with_norm_(weights, most, torch.tensor(norm))
    return norm
