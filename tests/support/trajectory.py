"""The losses of consecutive steps, for comparing two implementations."""

from typing import Any

import torch

from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.trainable import trained_parameters


def losses(
    model: Any, tokens: TokenDataset, policy: MicroBatchPolicy, *, steps: int, learning_rate: float, pad_id: int
) -> list[float]:
    """Train on all rows in each step; return the loss of each step."""
    optimizer = torch.optim.AdamW([weight for _, weight in trained_parameters(model)], lr=learning_rate)
    rows = range(len(tokens))
    step_losses = []
    for _ in range(steps):
        total = 0.0
        for _, batch in policy.batches(tokens, rows, pad_id):
            loss = token_loss(model, batch).nll.sum() / tokens.trained_tokens(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        step_losses.append(total)
    return step_losses
