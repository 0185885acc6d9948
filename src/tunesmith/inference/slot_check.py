"""Whether a model may write rows in slots, proved on the prompts at hand, and how many slots memory has for them.

Slots need layers that keep every token's keys and values and see them by mask alone, and a forward pass that takes
masks and positions from outside. No configuration says so, so the logits of two rows are compared with what the model
says to each alone.
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
from tunesmith.inference.slots import Slots
from tunesmith.kernels.packed_attention import MASKABLE_ATTENTION
from tunesmith.model.load import decoder_config
from tunesmith.model.memory import is_out_of_memory

# The cache takes so much of what is free, and never more than so many bytes, but always room for one row.
_SHARE = 0.25
_MOST_BYTES = 8 * 2**30
# By how much logits may differ in comparison with how they vary: rounding only.
_TOLERANCE = 1e-3
_LOW_PRECISION = 0.1
# Lengths in tokens of the two compared rows and of their shared prefix. Rows this short do not reveal a sliding window,
# which `has_full_attention` has excluded.
_LONG, _SHORT, _COMMON = 24, 13, 8


@dataclass(frozen=True, slots=True)
class SlotBudget:
    """What a token takes in all layers together, and what all slots may take."""

    token_bytes: int
    budget: int

    def slots(self, longest: int, most: int) -> int:
        """Return how many rows of up to so many tokens have room side by side."""
        return max(1, min(most, self.budget // (longest * self.token_bytes)))

    def alike(self, lengths: Sequence[int], most: int) -> int:
        """Return how many rows, longest first, have slots of equal room: for those after them twice as many fit."""
        first = self.slots(lengths[0], most)
        for i in range(len(lengths) - first):  # fewer than that would have room as it is
            if self.slots(lengths[i], most) >= 2 * first:
                return i
        return len(lengths)


@dataclass(frozen=True, slots=True)
class _Finding:
    token_bytes: int
    why_not: str | None


_FOUND: WeakKeyDictionary[torch.nn.Module, _Finding] = WeakKeyDictionary()


def slot_budget(model: Any, prompts: Sequence[Sequence[int]]) -> SlotBudget | None:
    """Return what room slots have, or None where the model cannot write in slots, which is told once a model."""
    found = _FOUND.get(model)
    if found is None:
        found = _examine(model, prompts)
        _FOUND[model] = found
        if found.why_not:
            log(f"answers are written in padded batches: {found.why_not}")
    return None if found.why_not else SlotBudget(found.token_bytes, _budget(model.device))


def _budget(device: torch.device) -> int:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_gib() * 2**30
    return min(_MOST_BYTES, int(free * _SHARE))


def _examine(model: Any, prompts: Sequence[Sequence[int]]) -> _Finding:
    if model.config.is_encoder_decoder:
        return _Finding(0, "an encoder reads what is asked")
    if decoder_config(model)._attn_implementation not in MASKABLE_ATTENTION:
        return _Finding(0, f"attention {decoder_config(model)._attn_implementation} takes no mask of this kind")
    if not has_full_attention(model):
        return _Finding(0, "not all of its layers keep and see every token")
    try:
        off, token_bytes = _compare(model, list(islice(cycle(chain(*prompts)), _LONG + _SHORT - _COMMON)))
    except (TypeError, ValueError, RuntimeError, MemoryError, LookupError, AttributeError) as error:  # another forward
        if is_out_of_memory(error):
            return _Finding(0, "memory does not suffice to try it")
        return _Finding(
            0, f"it takes no cache, positions and masks of ours: {(str(error).splitlines() or [''])[0][:120]}"
        )
    exact = model.dtype in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
    if not off <= (_TOLERANCE if exact else _LOW_PRECISION):
        return _Finding(0, f"what it says in slots differs by {off:.2g} from what it says to a row alone")
    return _Finding(token_bytes, None)


@torch.inference_mode()
def _compare(model: Any, ids: list[int]) -> tuple[float, int]:
    """Return by how much two steps of two rows in slots differ from either row alone, and what a token takes."""
    long, short = ids[:_LONG], [*ids[:_COMMON], *ids[_LONG:]]
    slots = Slots(model, slots=2, room=_LONG, beginning=ids[:_COMMON], strip_rows=1)
    slots.enter([long[:-1], short[:-1]])
    steps = [slots.logits()]
    slots.choose([long[-1], short[-1]])
    steps.append(slots.logits())
    off = 0.0
    for row, mine in zip((long, short), torch.stack(steps, 1), strict=True):
        alone = model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0, -2:].float()
        off = max(off, float((mine - alone).std() / alone.std()))
    return off, slots.cache.held_bytes // (2 * _LONG)
