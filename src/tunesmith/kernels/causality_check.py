"""Check that a model is causal, with forward passes that differ in their last token only.

The logits before that token must not change. If they do, tokens attend to the tokens that they should predict, and the
loss and verdict are meaningless. One pass is repeated to see whether this machine rounds deterministically.
"""

from dataclasses import replace
from typing import Any

import torch

from tunesmith.architecture.causality import CAUSAL_HINT
from tunesmith.core.errors import RecipeError
from tunesmith.data.token_dataset import Batch, TokenDataset
from tunesmith.distributed.fsdp import agree_on_reason
from tunesmith.kernels.temporary import eval_mode
from tunesmith.kernels.token_loss import model_inputs
from tunesmith.model.load import ComputeConfig, decoder_config

# Few tokens: in a short text, a single wrong token has a larger share of the attention of each position.
_LENGTH = 8
# The allowed change of a logit, in standard deviations of all logits. Operations of equal shapes round equally, so a
# causal model gives the same bits in any precision. There are two exceptions: a mixture of experts groups tokens by
# their values, which changes rounding by up to 1e-6 in fp32, and quantized layers may compute a scale over all tokens.
# Bidirectional models with random weights change by 4e-3 and more in fp32, and by 1.6e-2 and more in bf16.
_TOLERANCE = 2e-4
_TOLERANCE_ROUNDED = 0.05


@torch.inference_mode()
def require_causal_attention(model: Any, tokens: TokenDataset, pad_id: int, compute: ComputeConfig) -> None:
    """Raise RecipeError if a model's logits at a position depend on a later token.

    Args:
        tokens: rows of the run; the first tokens of the longest row are used, in the decoder if there is an encoder.
    """
    batch = _first_tokens(tokens.batch(tokens.shortest_first()[-1:], pad_id))
    if batch.input_ids.shape[1] < 2:
        return
    variants = (batch, batch, _with_other_last_token(batch))
    with eval_mode(model):
        before, repeated, after = (_logits(model, variant, compute) for variant in variants)
    is_rounded = _may_round_differently(model, compute, torch.equal(before, repeated))
    change = float((before - after)[:-1].abs().max() / before.std())
    reason = None
    if not change <= (_TOLERANCE_ROUNDED if is_rounded else _TOLERANCE):
        reason = f"changing the last token of a text changes the logits before it, by {change:.2g} standard deviations"
    if reason := agree_on_reason(model, reason):
        message = f"is not a causal language model: {reason}"
        raise RecipeError(message, where="model.base", hint=CAUSAL_HINT, code="not-causal")


def _may_round_differently(model: Any, compute: ComputeConfig, is_repeatable: bool) -> bool:
    """Return whether a causal model's logits may change by rounding, by much more than in fp32."""
    if getattr(model, "is_quantized", False):
        return True
    has_experts = any("expert" in name and value for name, value in decoder_config(model).to_dict().items())
    return compute.dtype not in (torch.float32, torch.float64) and (has_experts or not is_repeatable)


def _first_tokens(batch: Batch) -> Batch:
    """Return the batch, shortened to its first tokens."""
    shortened = {name: getattr(batch, name)[:, :_LENGTH] for name in ("input_ids", "loss_mask", "segment_ids")}
    return replace(batch, **shortened)


def _with_other_last_token(batch: Batch) -> Batch:
    """Return the batch with another last token: the first token of the row that differs from it, else 0 or 1."""
    ids = batch.input_ids.clone()
    ids[0, -1] = next(int(token) for token in (*ids[0].tolist(), 0, 1) if int(token) != int(ids[0, -1]))
    return replace(batch, input_ids=ids)


def _logits(model: Any, batch: Batch, compute: ComputeConfig) -> torch.Tensor:
    """Return logits [length, vocabulary] in fp32."""
    batch = batch.to(compute.device)
    with compute.autocast(model.dtype):
        logits: torch.Tensor = model(**model_inputs(model, batch), use_cache=False).logits[0]
    return logits.float()
