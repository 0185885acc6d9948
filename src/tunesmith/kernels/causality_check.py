"""Prove that a model is causal by two forward passes that differ in their last token only.

The logits before that token must not change. If they do, the model reads the answers that it is asked to predict, and
neither its loss nor a verdict on it means anything.
"""

from dataclasses import replace
from typing import Any

import torch

from tunesmith.architecture.causality import HINT
from tunesmith.core.errors import RecipeError
from tunesmith.data.batches import Batch, TokenSet
from tunesmith.distributed.fsdp import agreed
from tunesmith.kernels.token_loss import model_inputs
from tunesmith.model.load import Machine

# Few tokens: in a short text, one wrong token is a larger part of what each position attends to.
_LENGTH = 8
# Change of a logit in standard deviations of all logits. Rounding alone gives up to 1e-6 in fp32 (a mixture of experts
# routes tokens in other groups); bidirectional models give 3e-3 and more even with random weights.
_TOLERANCE = 2e-4
_TOLERANCE_LOW_PRECISION = 0.05


@torch.inference_mode()
def refuse_unless_causal(model: Any, tokens: TokenSet, pad_id: int, on: Machine) -> None:
    """Raise RecipeError if a model's logits at a position depend on a later token.

    Args:
        tokens: rows of the run; the first tokens of the longest row are tried, in the decoder if there is an encoder.
    """
    batch = _beginning(tokens.batch(tokens.shortest_first()[-1:], pad_id))
    if batch.input_ids.shape[1] < 2:
        return
    was_training = model.training
    model.eval()
    try:
        before, after = (_logits(model, one, on) for one in (batch, _with_another_end(batch)))
    finally:
        model.train(was_training)
    is_precise = on.compute in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
    tolerance = _TOLERANCE if is_precise else _TOLERANCE_LOW_PRECISION
    off = float((before - after)[:-1].abs().max() / before.std())
    reason = None
    if not off <= tolerance:
        reason = f"changing the last token of a text changes the logits before it, by {off:.2g} standard deviations"
    if reason := agreed(model, reason):
        raise RecipeError(f"is not a causal language model: {reason}", where="model.base", hint=HINT)


def _beginning(batch: Batch) -> Batch:
    """Return the first tokens of a batch."""
    cut = {name: getattr(batch, name)[:, :_LENGTH] for name in ("input_ids", "trained", "owner")}
    return replace(batch, **cut)


def _with_another_end(batch: Batch) -> Batch:
    """Return the batch with another last token: the first token of the row that differs, else 0 or 1."""
    ids = batch.input_ids.clone()
    ids[0, -1] = next(int(token) for token in (*ids[0].tolist(), 0, 1) if int(token) != int(ids[0, -1]))
    return replace(batch, input_ids=ids)


def _logits(model: Any, batch: Batch, on: Machine) -> torch.Tensor:
    """Return logits [length, vocabulary] in fp32."""
    batch = batch.to(on.device)
    with on.autocast(model.dtype):
        found: torch.Tensor = model(**model_inputs(model, batch), use_cache=False).logits[0]
    return found.float()
