"""The loss of a batch, for which only trained positions go through the output layer.

For most tasks a tenth of the tokens is trained, and the output layer's logits [positions, vocabulary] are what fills
memory. The hidden states are cut down just before it, so whatever a model does to its logits afterwards (soft-capping,
scaling) is done by the model's own code.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from tunesmith.data.batches import Batch


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """`nll` in nats, `correct`, and the place of its row in the batch for every trained token: [trained tokens]."""

    nll: torch.Tensor
    correct: torch.Tensor
    rows: torch.Tensor


def token_loss(model: Any, batch: Batch) -> TokenLoss:
    """Return the negative log-likelihood of every trained token.

    Args:
        model: a causal language model or one with encoder and decoder, in or out of peft.
        batch: `trained` marks the tokens to predict; each is predicted from the position before it. What a decoder
            starts from is the first token of `input_ids`, so targets need no shifting.
    """
    predicted = batch.trained[:, 1:]
    logits = _logits_at(model, batch, predicted)
    targets = batch.input_ids[:, 1:][predicted]
    nll = functional.cross_entropy(logits.float(), targets, reduction="none")
    return TokenLoss(nll, logits.detach().argmax(-1) == targets, batch.owner[:, 1:][predicted])


def _logits_at(model: Any, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
    """Return logits [selected, vocabulary] at the marked positions [sequences, length - 1]."""
    output_layer = model.get_output_embeddings()

    def select(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0][:, :-1][positions].unsqueeze(0), *args[1:])

    hook = output_layer.register_forward_pre_hook(select)
    try:
        logits: torch.Tensor = model(**_inputs(model, batch), use_cache=False).logits
    finally:
        hook.remove()
    return logits.squeeze(0)


def _inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """Return what the model is called with."""
    if batch.source_ids is not None:
        source = {"input_ids": batch.source_ids, "attention_mask": batch.source_mask}
        return {**source, "decoder_input_ids": batch.input_ids}
    if batch.sees is None:
        return {"input_ids": batch.input_ids}
    # What keeps rows of one sequence apart, as numbers to add, which every attention takes.
    hidden = torch.zeros(batch.sees.shape, dtype=model.dtype, device=batch.sees.device)
    hidden.masked_fill_(~batch.sees, torch.finfo(model.dtype).min)
    return {"input_ids": batch.input_ids, "position_ids": batch.positions, "attention_mask": hidden}
