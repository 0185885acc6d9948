"""The optimizer over what is trained, and its state as plain tensors."""

import importlib
import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.core.errors import DamagedFile, RecipeError, install_hint
from tunesmith.distributed.process_group import ProcessGroup
from tunesmith.model.adapters import trained_parameters
from tunesmith.model.dtensor import is_dtensor, local_shard, replica_count
from tunesmith.recipe.schema import Train

# bitsandbytes keeps the moments of smaller weights in fp32.
_LEAST_8BIT = 4096


def make_optimizer(model: Any, train: Train) -> torch.optim.Optimizer:
    """Return the recipe's optimizer; biases and norms, being vectors, do not decay.

    AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), the same with moments in 8 bits (Dettmers et al. 2022,
    arXiv:2110.02861), Adafactor (Shazeer & Stern 2018, arXiv:1804.04235), or plain gradient descent.

    Raises:
        RecipeError: it needs bitsandbytes, which is not installed.
    """
    weights = [weight for _, weight in trained_parameters(model)]
    matrices = [weight for weight in weights if weight.ndim >= 2]
    groups = [  # those in parts by themselves: torch updates what is alike together
        {"params": [w for w in matrices if not is_dtensor(w)], "weight_decay": train.weight_decay},
        {"params": [w for w in matrices if is_dtensor(w)], "weight_decay": train.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas = train.learning_rate, (train.beta1, train.beta2)
    if train.optimizer == "adamw_8bit":
        require_optimizer(train)
        made: torch.optim.Optimizer = importlib.import_module("bitsandbytes.optim").AdamW8bit(
            groups, lr=rate, betas=betas
        )
        return made
    if train.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=rate)
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)


def require_optimizer(train: Train) -> None:
    """Raise RecipeError where a package that the optimizer needs is not installed."""
    if train.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            "`adamw_8bit` needs bitsandbytes, which is not installed",
            where="train.optimizer",
            hint=f"{install_hint('qlora')}; or use adamw",
        )


def optimizer_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as {parameter.moment: tensor}."""
    return {
        f"{name}.{key}": torch.as_tensor(optimizer.state[weight][key])
        for name, weight in trained_parameters(model)
        if optimizer.state[weight]
        for key in _kept(optimizer, weight)
    }


def restore_optimizer(model: Any, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put saved state back; raise DamagedFile unless it is that of the trained weights."""
    left = dict(tensors)
    expected = 0
    for name, weight in trained_parameters(model):
        keys = _kept(optimizer, weight)
        expected += len(keys)
        state = {key: left.pop(f"{name}.{key}", None) for key in keys}
        if all(value is None for value in state.values()):
            continue  # a weight that no row has reached yet, such as an expert's, has no state
        if any(value is None for value in state.values()):
            raise DamagedFile(f"holds only a part of the optimizer state of {name}")
        # The step counter stays on the CPU unless the fused optimizer keeps it beside the weight.
        found: dict[str, Any] = {key: value.to(weight.device) for key, value in state.items() if value is not None}
        optimizer.state[weight] = _with_code(optimizer, found, weight) if _is_8bit(optimizer) else found
    if left or (expected and not tensors):
        raise DamagedFile(f"is not the optimizer state of this model: {sorted(left)[:3]}")


def _kept(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> tuple[str, ...]:
    """Return what an optimizer remembers of a weight."""
    if isinstance(optimizer, torch.optim.Adafactor):
        return ("step", "row_var", "col_var") if weight.ndim > 1 else ("step", "variance")
    if isinstance(optimizer, torch.optim.SGD):
        return ()
    if _is_8bit(optimizer):
        return ("step", "state1", "state2", *(("absmax1", "absmax2") if weight.numel() >= _LEAST_8BIT else ()))
    return ("step", "exp_avg", "exp_avg_sq")


def _is_8bit(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.startswith("bitsandbytes.")


def _with_code(optimizer: Any, state: dict[str, Any], weight: torch.Tensor) -> dict[str, Any]:
    """Return restored state as bitsandbytes has it: its step is a number, and its code of 8 bits stands beside."""
    state["step"] = int(state["step"])
    if "absmax1" in state:
        if "dynamic" not in optimizer.name2qmap:
            optimizer.fill_qmap()
        names = {"qmap1": "dynamic", "qmap2": "udynamic"}
        state |= {key: optimizer.name2qmap[name].to(weight.device) for key, name in names.items()}
    return state


def clip_gradients(model: Any, most: float, group: ProcessGroup, *, loss_scale: float = 1.0) -> float:
    """Scale gradients down to a norm of at most `most`; return the norm before. Nothing is scaled if not finite.

    Args:
        group: the processes that have the parts of what is divided.
        loss_scale: what the loss was multiplied by, which is taken out of the gradients first.
    """
    gradients = [weight.grad for _, weight in trained_parameters(model) if weight.grad is not None]
    parts = [local_shard(gradient) for gradient in gradients]
    if loss_scale != 1:
        torch._foreach_mul_(parts, 1 / loss_scale)
    norm = _norm(gradients, group)
    if math.isfinite(norm) and norm > most:
        torch._foreach_mul_(parts, most / (norm + 1e-6))  # as torch's own clipping does
    return norm


def _norm(gradients: Sequence[torch.Tensor], group: ProcessGroup) -> float:
    """Return the norm of all gradients together, each part of one counted once."""
    whole = float(torch.nn.utils.get_total_norm([one for one in gradients if not is_dtensor(one)]))
    divided = [one for one in gradients if is_dtensor(one)]
    if not divided:
        return whole
    mine = float(torch.nn.utils.get_total_norm([local_shard(one) for one in divided]))
    (squares,) = group.sum(mine**2)
    return math.sqrt(whole**2 + squares / replica_count(divided[0]))
