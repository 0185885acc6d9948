"""Muon: orthogonalized updates for the matrices inside a model, and AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by a matrix with
the same singular vectors whose singular values are all near 1, so that no direction dominates an update. With the
factor of Liu et al. 2025 (arXiv:2502.16982, section 2.2), 0.2 sqrt(max(rows, columns)), the entries of an update are as
large as AdamW's, and one learning rate and weight decay serve both.

torch.optim.Muon does the same for whole matrices. This one also takes the weights of experts [experts, ., .], in which
each expert is a matrix, and sharded matrices, which are gathered one at a time, as orthogonalization needs all entries.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from tunesmith.model.dtensor import shard_like
from tunesmith.model.experts import expert_weights
from tunesmith.model.load import has_native_bf16

# The settings of both sources.
_MOMENTUM = 0.95
_ITERATIONS = 5
# Of x -> a x + b x^3 + c x^5, applied to each singular value: steep at 0, and stays near 1 (Jordan et al. 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ADAMW_RMS = 0.2
_EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon for some matrices and AdamW for other weights, as one optimizer with one learning rate.

    Args:
        matrices: weights [rows, columns] or [experts, rows, columns].
        others: AdamW's groups of all other weights.
        weight_decay: decoupled, of the matrices.
    """

    def __init__(
        self,
        matrices: Sequence[torch.nn.Parameter],
        others: Sequence[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, fused=True) if others else None
        # Both optimizers have the same dictionaries of groups and of states, so whoever sets one sets both.
        groups = [] if self._adamw is None else self._adamw.param_groups
        own = [{"params": list(matrices), "weight_decay": weight_decay}] if matrices else []
        super().__init__([*own, *groups], {"lr": lr})
        self._own = self.param_groups[: len(own)]
        self._matrices = {id(weight) for weight in matrices}
        if self._adamw is not None:
            self._adamw.state = self.state

    def is_orthogonalized(self, weight: torch.Tensor) -> bool:
        """Return whether a weight is one of the matrices, whose only state is `momentum`."""
        return id(weight) in self._matrices

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient."""
        for group in self._own:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"], group["weight_decay"])
        if self._adamw is not None:
            self._adamw.step()

    def _update(self, weight: torch.Tensor, gradient: torch.Tensor, rate: float, weight_decay: float) -> None:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        update = gradient.lerp(state["momentum"], _MOMENTUM)  # Nesterov
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        direction = orthogonalize(whole, torch.bfloat16 if has_native_bf16(whole.device) else whole.dtype)
        weight.mul_(1 - rate * weight_decay)
        scale = _ADAMW_RMS * max(weight.shape[-2:]) ** 0.5
        weight.add_(shard_like(direction.to(weight.dtype), weight), alpha=-rate * scale)


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return matrices [..., rows, columns] with all singular values near 1, about 0.7 to 1.2.

    By five Newton-Schulz iterations, in products of `dtype`.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if is_tall else matrices).to(dtype)  # the smaller side first: cheaper products
    shape = x.shape
    x = x.reshape(-1, *shape[-2:])
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    x = x.reshape(shape)
    return x.mT if is_tall else x


def hidden_matrices(model: Any) -> list[torch.nn.Parameter]:
    """Return the trained weights of all linear layers but the output layer, and of experts, or of their adapters.

    Embeddings and the output layer work on tokens, not on hidden values; both sources leave them to AdamW.
    """
    output = model.get_output_embeddings()
    head = None if output is None else output.weight  # tied to the embedding or not
    # GPT-2's Conv1D is a linear layer with a transposed weight.
    linear: list[Any] = [module.weight for module in model.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    found = {id(weight): weight for weight in (*linear, *(weight for _, weight in expert_weights(model)))}
    return [weight for weight in found.values() if weight.requires_grad and weight is not head]
