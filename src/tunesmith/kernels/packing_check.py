"""Whether a model keeps rows apart that stand side by side in one sequence: proved on rows of the run, not believed.

Not every architecture can: some look back by place and not by mask, some carry a state from token to token.
"""

from dataclasses import replace
from typing import Any

import torch

from tunesmith.architecture.shapes import UNLIMITED
from tunesmith.data.batch import Batch
from tunesmith.data.microbatch import ENCODER_CANNOT_PACK
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.distributed.fsdp import agree_on_reason, raise_if_sharded
from tunesmith.kernels.packed_attention import (
    MASKABLE_ATTENTION,
    has_packed_attention,
    use_packed_attention,
    use_plain_attention,
)
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.load import ComputeConfig, decoder_config

# Nats by which a token's loss may differ between the two layouts: rounding only.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
_LOW_PRECISION = 0.3


def attention_window(model: Any) -> int:
    """Return the length up to which all attention layers see every earlier token."""
    config = decoder_config(model)
    windows = (getattr(config, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size"))
    return min((int(window) for window in windows if isinstance(window, int) and window > 0), default=UNLIMITED)


def has_dropout(model: Any) -> bool:
    """Say whether training draws anything at random for each row, so that no row may stand for another."""
    for module in model.modules():
        # Attention keeps its rate as a number and calls a function.
        rates = [value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
        if any(rate > 0 for rate in rates) or (isinstance(module, torch.nn.Dropout) and module.p > 0):
            return True
    return False


@torch.inference_mode()
def packing_unsupported_reason(model: Any, tokens: TokenDataset, pad_id: int, compute: ComputeConfig) -> str | None:
    """Return why rows must not share a sequence in this model, or None where they may.

    One row is measured alone, beside another, and beside that row with other tokens in it: the first two must agree up
    to rounding, the last two exactly. Where a model can, the attention of each row is computed by itself from then on;
    else a mask keeps them apart, and the row is the longest that has room beside another.
    """
    if len(tokens) < 2:
        return "there is only one row"
    if model.config.is_encoder_decoder:
        return ENCODER_CANNOT_PACK
    if use_packed_attention(model):
        if _why_not_apart(model, tokens, pad_id, compute) is None:
            return None
        use_plain_attention(model)
    if model.config._attn_implementation not in MASKABLE_ATTENTION:
        return f"attention {model.config._attn_implementation} takes no mask of this kind"
    return _why_not_apart(model, tokens, pad_id, compute)


def _why_not_apart(model: Any, tokens: TokenDataset, pad_id: int, compute: ComputeConfig) -> str | None:
    rows = _probe(tokens, attention_window(model), by_row=has_packed_attention(model))
    if rows is None:
        return "its attention reaches no further than one row"
    was_training = model.training
    model.eval()
    try:
        alone = _losses(model, tokens.batch(rows[1:], pad_id), 0, compute)
        beside = tokens.packed(rows, pad_id, shared=tokens.shared_prefix_length(*rows))
        place = len(tokens.sequence_lengths(rows[:1]))  # of the second row's first sequence
        first, second = _losses(model, beside, place, compute), _losses(model, _disturbed(beside), place, compute)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:  # somebody else's forward
        raise_if_sharded(model, error)
        return f"it does not take positions and masks of its own: {str(error).splitlines()[0][:120]}"
    finally:
        model.train(was_training)
    off = float((first - alone).abs().max())
    reason = None
    if not torch.equal(first, second):
        reason = "what a row gives depends on the row beside it"
    elif off > _TOLERANCE.get(compute.dtype, _LOW_PRECISION):
        reason = f"a row's loss differs by {off:.2g} nats a token beside another row"
    return agree_on_reason(model, reason)


def _probe(tokens: TokenDataset, reach: int, *, by_row: bool) -> tuple[int, int] | None:
    """Return a short row and the longest that fits beside it; by row, where places play no part, the next short one."""
    first, *others = tokens.shortest_first()
    if by_row:
        return first, others[0]
    fitting = [row for row in others if int(tokens.lengths[row] + tokens.lengths[first]) <= reach]
    return (first, fitting[-1]) if fitting else None


def _losses(model: Any, batch: Batch, row: int, compute: ComputeConfig) -> torch.Tensor:
    batch = batch.to(compute.device)
    with compute.autocast(model.dtype):
        found = token_loss(model, batch)
    return found.nll[found.rows == row]


def _disturbed(batch: Batch) -> Batch:
    """Return the batch with other tokens in its first row, what it shares with the second left out."""
    ids = batch.input_ids.clone()
    mine = batch.segment_ids == 0
    ids[mine] = ids[mine].flip(0).roll(1)
    return replace(batch, input_ids=ids)
