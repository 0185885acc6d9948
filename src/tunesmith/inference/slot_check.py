"""Check that a model can generate in slots, and compute the number of slots that fit in memory.

Slots need layers that cache the keys and values of every token and hide tokens by the mask alone, and a forward pass
that accepts masks and positions. No configuration states that, so the logits of two rows in slots are compared with
those of each row alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tunesmith.core.progress import log
from tunesmith.estimate.hardware import available_memory_gib
from tunesmith.inference.decoding import has_full_attention
from tunesmith.inference.request import Limits, Request
from tunesmith.inference.slots import Slots
from tunesmith.kernels.packed_attention import MASKABLE_ATTENTION
from tunesmith.model.load import decoder_config
from tunesmith.model.memory import is_out_of_memory

# The cache takes at most this share of the free memory and at most this many bytes, but always has room for one row.
_MEMORY_SHARE = 0.25
MAX_CACHE_BYTES = 8 * 2**30
# The allowed difference of the logits, relative to their standard deviation: rounding only.
_TOLERANCE = 1e-3
_LOW_PRECISION_TOLERANCE = 0.1
# Lengths in tokens of the two compared rows and of their shared prefix. Rows this short do not reveal a sliding window,
# which `has_full_attention` has excluded.
_LONG, _SHORT, _PREFIX = 24, 13, 8


@dataclass(frozen=True, slots=True)
class SlotBudget:
    """The bytes of a token in the caches of all layers, and the bytes for all slots."""

    token_bytes: int
    total_bytes: int

    def max_slots(self, row_tokens: int, limit: int) -> int:
        """Return the number of slots for rows of `row_tokens` tokens, at most `limit` and at least 1."""
        return max(1, min(limit, self.total_bytes // (row_tokens * self.token_bytes)))

    def count_similar(self, lengths: Sequence[int], limit: int) -> int:
        """Return the number of rows, longest first, to generate in slots of equal size.

        For the shorter rows after them, at least twice as many slots would fit.
        """
        slots = self.max_slots(lengths[0], limit)
        for i in range(len(lengths) - slots):  # smaller slots do not help the last rows, which all fit already
            if self.max_slots(lengths[i], limit) >= 2 * slots:
                return i
        return len(lengths)


# By model: the bytes of a token in the caches of all layers, or the reason why the model cannot generate in slots.
_RESULTS: WeakKeyDictionary[torch.nn.Module, int | str] = WeakKeyDictionary()


def slot_budget(model: Any, prompts: Sequence[Sequence[int]]) -> SlotBudget | None:
    """Return the memory for slots; None if the model cannot generate in slots, with the reason logged once."""
    result = _RESULTS.get(model)
    if result is None:
        result = _RESULTS[model] = _check(model, prompts)
        if isinstance(result, str):
            log(f"generating in padded batches: {result}")
    return None if isinstance(result, str) else SlotBudget(result, cache_bytes(model.device))


def slots_unsupported_reason(model: Any) -> str | None:
    """Return the reason why a model cannot generate in slots, if `slot_budget` has checked it; None if it can."""
    result = _RESULTS.get(model)
    return result if isinstance(result, str) else None


def cache_bytes(device: torch.device) -> int:
    """Return the bytes that all slots may take on a device."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_gib() * 2**30
    return min(MAX_CACHE_BYTES, int(free * _MEMORY_SHARE))


def _check(model: Any, prompts: Sequence[Sequence[int]]) -> int | str:
    """Return the bytes of a token in the caches of all layers, or the reason why the model cannot generate in slots."""
    if model.config.is_encoder_decoder:
        return "the model has an encoder"
    implementation = decoder_config(model)._attn_implementation
    if implementation not in MASKABLE_ATTENTION:
        return f"attention `{implementation}` accepts no additive mask"
    if not has_full_attention(model):
        return "not all layers cache every token and attend to it"
    try:
        difference, token_bytes = _compare(model, list(islice(cycle(chain(*prompts)), _LONG + _SHORT - _PREFIX)))
    except (TypeError, ValueError, RuntimeError, MemoryError, LookupError, AttributeError) as error:
        if is_out_of_memory(error):
            return "there is too little memory to check slots"
        problem = (str(error).splitlines() or [""])[0][:120]
        return f"the model does not accept our cache, positions and masks: {problem}"
    exact = model.dtype in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
    if not difference <= (_TOLERANCE if exact else _LOW_PRECISION_TOLERANCE):
        return f"logits in slots differ by {difference:.2g} from those of a row alone"
    return token_bytes


@torch.inference_mode()
def _compare(model: Any, ids: list[int]) -> tuple[float, int]:
    """Return the difference between the logits of two steps in slots and alone, and the cached bytes per token."""
    long, short = ids[:_LONG], [*ids[:_PREFIX], *ids[_LONG:]]
    slots = Slots(model, slots=2, slot_tokens=_LONG, prefix=ids[:_PREFIX], strip_rows=1)
    slots.admit([Request(i, row[:-1], Limits(2)) for i, row in enumerate((long, short))])
    steps = [slots.logits()]
    slots.append([long[-1], short[-1]])
    steps.append(slots.logits())
    difference = 0.0
    for row, in_slot in zip((long, short), torch.stack(steps, 1), strict=True):
        alone = model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0, -2:].float()
        difference = max(difference, float((in_slot - alone).std() / alone.std()))
    return difference, slots.cache.nbytes // (2 * _LONG)
