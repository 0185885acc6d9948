"""Choose how many requests a worker answers at the same time, and how long they may be, within its memory."""

from typing import Any

from tunesmith.core.errors import DoesNotFit
from tunesmith.inference.slot_check import SlotBudget, cache_bytes, slot_budget, slots_unsupported_reason
from tunesmith.model.load import max_positions
from tunesmith.serve.work import Capacity

# The share of the memory for beginnings of earlier prompts.
_PREFIX_SHARE = 0.25
# If memory is short, requests are at most as long as this number of slots allows.
_MIN_SLOTS = 4
# The longest request of models without slots and without a limit of positions, such as T5.
_MAX_TOKENS_WITHOUT_SLOTS = 4096


def choose_capacity(model: Any, *, cache_gib: float | None, max_tokens: int | None, max_slots: int) -> Capacity:
    """Return the capacity of a model; raise DoesNotFit if a request of `max_tokens` does not fit in the memory.

    Args:
        cache_gib: the memory for keys and values; None: a share of the free memory.
        max_tokens: the maximum number of tokens of a prompt with its answer; None: as many as possible.
    """
    positions = min(max_positions(model), max_tokens or 2**31)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    budget = slot_budget(model, [[i % vocabulary for i in range(40)]])
    if budget is None:
        tokens = min(positions, max_tokens or _MAX_TOKENS_WITHOUT_SLOTS)
        return Capacity(1, tokens, 0, 0, one_at_a_time=slots_unsupported_reason(model))
    total = int(cache_gib * 2**30) if cache_gib is not None else cache_bytes(model.device)
    prefix_bytes = int(total * _PREFIX_SHARE)
    slot_bytes = total - prefix_bytes
    token_bytes = budget.token_bytes
    tokens = positions if max_tokens else min(positions, max(1, slot_bytes // (_MIN_SLOTS * token_bytes)))
    if tokens * token_bytes > slot_bytes:
        needed, given = tokens * token_bytes / 2**30, slot_bytes / 2**30
        message = (
            f"a request of {tokens} tokens takes {needed:.2f} GiB of keys and values, and {given:.2f} GiB are free"
        )
        hint = f"allow at most {slot_bytes // token_bytes} tokens, or more memory"
        raise DoesNotFit(message, hint=hint, code="not-enough-memory")
    slots = SlotBudget(token_bytes, slot_bytes).max_slots(tokens, max_slots)
    return Capacity(slots, tokens, slots * tokens * token_bytes, prefix_bytes)
