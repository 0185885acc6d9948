"""Prove on rows of the run that a model keeps packed rows apart.

Not every architecture does: some ignore masks, and some carry a state from token to token.
"""

from dataclasses import replace
from typing import Any

import torch

from tunesmith.architecture.shapes import UNLIMITED
from tunesmith.data.microbatch import ENCODER_CANNOT_PACK
from tunesmith.data.token_dataset import Batch, TokenDataset
from tunesmith.distributed.fsdp import agree_on_reason, raise_if_sharded
from tunesmith.kernels.packed_attention import MASKABLE_ATTENTION, use_packed_attention, use_plain_attention
from tunesmith.kernels.temporary import eval_mode
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.load import ComputeConfig, decoder_config

# The allowed difference between the losses of packed and unpacked tokens, in nats: rounding only. In low precision it
# is the root mean square, because rounding changes the loss of an unlikely token by up to half a nat (SmolLM2 in bf16,
# whose root mean square is 0.02 to 0.11); in others, the maximum.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
_LOW_PRECISION = 0.3


def attention_window(model: Any) -> int:
    """Return the sequence length up to which every attention layer sees all earlier tokens."""
    config = decoder_config(model)
    windows = (getattr(config, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size"))
    return min((int(window) for window in windows if isinstance(window, int) and window > 0), default=UNLIMITED)


def has_dropout(model: Any) -> bool:
    """Return whether training uses dropout. If so, rows cannot share a prefix, because each must draw its own mask."""
    modules = list(model.modules())
    # Attention layers store their rate as a float and call a function.
    rates = [rate for module in modules for name, rate in vars(module).items() if "drop" in name]
    rates += [float(module.p) for module in modules if isinstance(module, torch.nn.Dropout)]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


@torch.inference_mode()
def packing_unsupported_reason(model: Any, tokens: TokenDataset, pad_id: int, compute: ComputeConfig) -> str | None:
    """Return the reason why rows must not be packed in this model, or None if they may be.

    The loss of a row is measured alone, packed with another row, and packed with that row after its tokens have been
    changed. The first two must agree up to rounding, and the last two exactly. If it can, the model uses
    `packed_attention` from then on; otherwise a mask keeps rows apart, and the check uses the longest row that fits
    into the attention window together with another.
    """
    if len(tokens) < 2:
        return "there is only one row"
    if model.config.is_encoder_decoder:
        return ENCODER_CANNOT_PACK
    if use_packed_attention(model):
        if _mixing_reason(model, tokens, pad_id, compute, packed_attention=True) is None:
            return None
        use_plain_attention(model)
    if model.config._attn_implementation not in MASKABLE_ATTENTION:
        return f"attention `{model.config._attn_implementation}` does not accept 4D masks"
    return _mixing_reason(model, tokens, pad_id, compute, packed_attention=False)


def _mixing_reason(
    model: Any, tokens: TokenDataset, pad_id: int, compute: ComputeConfig, *, packed_attention: bool
) -> str | None:
    """Return the reason why the model's current attention does not keep packed rows apart, or None if it does."""
    rows = _test_rows(tokens, attention_window(model), packed_attention=packed_attention)
    if rows is None:
        return "its attention window is shorter than two rows"
    packed = tokens.packed(rows, pad_id, shared=tokens.shared_prefix_length(*rows))
    index = len(tokens.sequence_lengths(rows[:1]))  # of the second row's first sequence
    try:
        with eval_mode(model):
            alone = _losses(model, tokens.batch(rows[1:], pad_id), 0, compute)
            together = _losses(model, packed, index, compute)
            disturbed = _losses(model, _disturb_first_row(packed), index, compute)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:  # raised in the model's own code
        raise_if_sharded(model, error)
        return f"it does not accept position ids and masks: {str(error).splitlines()[0][:120]}"
    differences, reason = (together - alone).abs(), None
    is_exact = compute.dtype in _TOLERANCE
    difference = float(differences.max() if is_exact else differences.square().mean().sqrt())
    if not torch.equal(together, disturbed):
        reason = "the loss of a row depends on the tokens of the row before it"
    elif difference > _TOLERANCE.get(compute.dtype, _LOW_PRECISION):
        reason = f"packing changes the loss of a row by {difference:.2g} nats per token"
    return agree_on_reason(model, reason)


def _test_rows(tokens: TokenDataset, window: int, *, packed_attention: bool) -> tuple[int, int] | None:
    """Return the shortest row and the longest one that fits into the window with it; None if none fits.

    With `packed_attention`, the position in the sequence does not matter, so the two shortest rows suffice.
    """
    first, *others = tokens.shortest_first()
    if packed_attention:
        return first, others[0]
    candidates = [row for row in others if int(tokens.lengths[row] + tokens.lengths[first]) <= window]
    return (first, candidates[-1]) if candidates else None


def _losses(model: Any, batch: Batch, row: int, compute: ComputeConfig) -> torch.Tensor:
    """Return the losses [trained tokens] of one row of a batch."""
    batch = batch.to(compute.device)
    with compute.autocast(model.dtype):
        loss = token_loss(model, batch)
    return loss.nll[loss.rows == row]


def _disturb_first_row(batch: Batch) -> Batch:
    """Return the batch with other tokens in its first row, but with the same shared prefix."""
    ids = batch.input_ids.clone()
    first_row = batch.segment_ids == 0
    ids[first_row] = ids[first_row].flip(0).roll(1)
    return replace(batch, input_ids=ids)
