"""The optimizer of the trained parameters, its state as plain tensors, and gradient clipping."""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.core.errors import DamagedFile
from tunesmith.distributed.process_group import ProcessGroup
from tunesmith.model.dtensor import is_dtensor, local_shard, replica_count
from tunesmith.model.quantization import require_bitsandbytes
from tunesmith.model.trainable import trained_parameters
from tunesmith.recipe.training import Train
from tunesmith.train.muon import Muon, hidden_matrices

# bitsandbytes keeps the moments of smaller weights in fp32.
_MIN_8BIT_SIZE = 4096


def make_optimizer(model: Any, train: Train) -> torch.optim.Optimizer:
    """Return the recipe's optimizer. Weight decay applies to matrices only, not to biases and norms.

    AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), the same with moments in 8 bits (Dettmers et al. 2022,
    arXiv:2110.02861), Adafactor (Shazeer & Stern 2018, arXiv:1804.04235), Muon for hidden matrices with AdamW for the
    rest (`muon.py`), or plain gradient descent.

    Raises:
        RecipeError: the optimizer needs bitsandbytes, which is not installed.
    """
    hidden = hidden_matrices(model) if train.optimizer == "muon" else []
    hidden_ids = {id(weight) for weight in hidden}
    weights = [weight for _, weight in trained_parameters(model) if id(weight) not in hidden_ids]
    matrices = [weight for weight in weights if weight.ndim >= 2]
    groups = [  # DTensors in a separate group: torch updates the tensors of a group together
        {"params": [w for w in matrices if not is_dtensor(w)], "weight_decay": train.weight_decay},
        {"params": [w for w in matrices if is_dtensor(w)], "weight_decay": train.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas = train.learning_rate, (train.beta1, train.beta2)
    if train.optimizer == "adamw_8bit":
        require_optimizer(train)
        adamw_8bit = importlib.import_module("bitsandbytes.optim").AdamW8bit
        optimizer: torch.optim.Optimizer = adamw_8bit(groups, lr=rate, betas=betas)
        return optimizer
    if train.optimizer == "muon":
        return Muon(hidden, groups, lr=rate, betas=betas, weight_decay=train.weight_decay)
    if train.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=rate)
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)


def require_optimizer(train: Train) -> None:
    """Raise RecipeError if the optimizer needs a package that is not installed."""
    if train.optimizer == "adamw_8bit":
        require_bitsandbytes("adamw_8bit", "train.optimizer", "adamw")


def optimizer_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer state as {parameter.key: tensor}."""
    return {
        f"{name}.{key}": torch.as_tensor(optimizer.state[weight][key])
        for name, weight in trained_parameters(model)
        if optimizer.state[weight]
        for key in _state_keys(optimizer, weight)
    }


def restore_optimizer(model: Any, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Load a saved optimizer state; raise DamagedFile unless it matches the trained weights."""
    remaining = dict(tensors)
    expected = 0
    for name, weight in trained_parameters(model):
        keys = _state_keys(optimizer, weight)
        expected += len(keys)
        state = {key: remaining.pop(f"{name}.{key}", None) for key in keys}
        if all(value is None for value in state.values()):
            continue  # a weight without a gradient so far has no state, such as an unused expert
        if any(value is None for value in state.values()):
            raise DamagedFile(f"the optimizer state of {name} is incomplete", code="wrong-optimizer-state")
        # The fused optimizer keeps the step counter on the device of the weight.
        restored: dict[str, Any] = {key: value.to(weight.device) for key, value in state.items() if value is not None}
        optimizer.state[weight] = _with_qmaps(optimizer, restored, weight) if _is_8bit(optimizer) else restored
    if remaining or (expected and not tensors):
        message = f"this optimizer state belongs to another model: {sorted(remaining)[:3]}"
        raise DamagedFile(message, code="wrong-optimizer-state")


def _state_keys(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> tuple[str, ...]:
    """Return the keys of the state that an optimizer keeps for a weight."""
    if isinstance(optimizer, torch.optim.Adafactor):
        return ("step", "row_var", "col_var") if weight.ndim > 1 else ("step", "variance")
    if isinstance(optimizer, torch.optim.SGD):
        return ()
    if isinstance(optimizer, Muon) and optimizer.is_orthogonalized(weight):
        return ("momentum",)
    if _is_8bit(optimizer):
        return ("step", "state1", "state2", *(("absmax1", "absmax2") if weight.numel() >= _MIN_8BIT_SIZE else ()))
    return ("step", "exp_avg", "exp_avg_sq")


def _is_8bit(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.startswith("bitsandbytes.")


def _with_qmaps(optimizer: Any, state: dict[str, Any], weight: torch.Tensor) -> dict[str, Any]:
    """Return restored state as bitsandbytes expects it: `step` as an int, and with its 8-bit quantization maps."""
    state["step"] = int(state["step"])
    if "absmax1" in state:
        if "dynamic" not in optimizer.name2qmap:
            optimizer.fill_qmap()
        names = {"qmap1": "dynamic", "qmap2": "udynamic"}
        state |= {key: optimizer.name2qmap[name].to(weight.device) for key, name in names.items()}
    return state


def clip_gradients(model: Any, max_norm: float, group: ProcessGroup, *, loss_scale: float = 1.0) -> float:
    """Divide the gradients by `loss_scale`, clip their total norm to `max_norm`, and return the norm before clipping.

    If the norm is not finite, the gradients are not clipped.

    Args:
        group: the ranks that hold the shards of sharded gradients.
    """
    gradients = [weight.grad for _, weight in trained_parameters(model) if weight.grad is not None]
    shards = [local_shard(gradient) for gradient in gradients]
    if loss_scale != 1:
        torch._foreach_mul_(shards, 1 / loss_scale)
    norm = _norm(gradients, group)
    if math.isfinite(norm) and norm > max_norm:
        torch._foreach_mul_(shards, max_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_ does
    return norm


def updated_share(model: Any, optimizer: torch.optim.Optimizer) -> float:
    """Return the share of the trained parameters whose updates this rank computes."""
    weights = [weight for _, weight in trained_parameters(model)]
    if isinstance(optimizer, Muon):  # sharded matrices are orthogonalized by all ranks
        return 1.0
    return sum(local_shard(weight).numel() for weight in weights) / sum(weight.numel() for weight in weights)


def _norm(gradients: Sequence[torch.Tensor], group: ProcessGroup) -> float:
    """Return the total norm of all gradients, counting each shard once."""
    replicated_norm = float(torch.nn.utils.get_total_norm([grad for grad in gradients if not is_dtensor(grad)]))
    sharded = [grad for grad in gradients if is_dtensor(grad)]
    if not sharded:
        return replicated_norm
    local_norm = float(torch.nn.utils.get_total_norm([local_shard(grad) for grad in sharded]))
    (squares,) = group.sum(local_norm**2)
    return math.sqrt(replicated_norm**2 + squares / replica_count(sharded[0]))
