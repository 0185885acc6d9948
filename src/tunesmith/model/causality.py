"""Whether a model is causal: proved by two forward passes that differ in their last token only.

What a model says before that token must not change. If it does, the model has read the answers it is asked to predict,
and neither its loss nor a verdict on it means anything.
"""

from dataclasses import replace
from typing import Any

import torch

from tunesmith.core.errors import RecipeError
from tunesmith.data.batches import Batch, TokenSet
from tunesmith.model.load import Machine
from tunesmith.model.sharding import agreed
from tunesmith.model.token_loss import model_inputs
from tunesmith.recipe.causality import HINT

# Few tokens, because each sees a larger part of what is wrong in a short text.
_LENGTH = 8
# Change of a logit in standard deviations of all logits. Rounding alone gives up to 1e-6 in fp32 (a mixture of experts
# groups other tokens); bidirectional models with random weights, which look away least, give 3e-3 and more.
_TOLERANCE = {torch.float64: 2e-4, torch.float32: 2e-4}
_LOW_PRECISION = 0.05


@torch.inference_mode()
def refuse_unless_causal(model: Any, tokens: TokenSet, pad_id: int, on: Machine) -> None:
    """Raise RecipeError if what a model says at a position depends on a later token.

    Args:
        tokens: rows of the run; the beginning of the longest is tried. Of an encoder-decoder, the decoder is.
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
    exact = not getattr(model, "is_quantized", False)
    tolerance = _TOLERANCE.get(on.compute, _LOW_PRECISION) if exact else _LOW_PRECISION
    off = float((before - after)[:-1].abs().max() / before.std())
    reason = None
    if not off <= tolerance:
        reason = f"changing the last token of a text changes what it says before it, by {off:.2g} standard deviations"
    if reason := agreed(model, reason):
        raise RecipeError(f"is not a causal language model: {reason}", where="model.base", hint=HINT)


def _beginning(batch: Batch) -> Batch:
    """Return the first tokens of a batch; padding is a token like any other, as nothing masks it."""
    cut = {name: getattr(batch, name)[:, :_LENGTH] for name in ("input_ids", "trained", "owner")}
    return replace(batch, **cut)


def _with_another_end(batch: Batch) -> Batch:
    """Return the batch with another last token: the first one, or one that it has not."""
    ids = batch.input_ids.clone()
    ids[0, -1] = next(int(token) for token in (*ids[0].tolist(), 0, 1) if int(token) != int(ids[0, -1]))
    return replace(batch, input_ids=ids)


def _logits(model: Any, batch: Batch, on: Machine) -> torch.Tensor:
    """Return logits [length, vocabulary] in fp32."""
    batch = batch.to(on.device)
    with on.autocast(model.dtype):
        found: torch.Tensor = model(**model_inputs(model, batch), use_cache=False).logits[0]
    return found.float()
