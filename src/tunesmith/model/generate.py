"""Greedy answers to many prompts: sorted by length, in batches that rows leave as soon as they have stopped.

What all prompts of a batch begin with is read once. A batch that memory does not suffice for is cut in two.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tunesmith.core import interrupt
from tunesmith.core.errors import DoesNotFit
from tunesmith.model.isolation import WITHOUT_LIMIT, attention_reach
from tunesmith.model.load import decoder_config
from tunesmith.model.out_of_memory import free_memory, is_out_of_memory

# A beginning that is shorter is not worth a forward pass of its own.
_LEAST_SHARED = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated ids without the stop token; `stopped` is false when the limit cut the answer off."""

    index: int
    ids: tuple[int, ...]
    stopped: bool


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_rows: int = 32,
    pick: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[Answer]:
    """Yield one answer a prompt, in the order in which they finish.

    Args:
        prompts: ids of each prompt.
        stop_ids: ids after which an answer is over.
        max_new_tokens: limit of an answer.
        batch_rows: prompts answered side by side; changes speed and memory, and in fp32 not the answers.
        pick: chooses the next ids [rows] from logits [rows, vocabulary]; default the likeliest.
    """
    pick = pick or (lambda logits: logits.argmax(-1))
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    waiting = [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]
    while waiting:
        rows = waiting.pop(0)
        left = set(rows)
        try:
            for answer in _batch(model, rows, [list(prompts[i]) for i in rows], stop_ids, max_new_tokens, pick):
                left.discard(answer.index)
                yield answer
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(left) == 1:
                raise DoesNotFit(
                    f"memory does not suffice to answer one prompt of {len(prompts[rows[0]])} tokens",
                    hint="lower evaluate.max_new_tokens or data.max_tokens_per_example",
                ) from error
        # Not inside `except`: the error's traceback holds the tensors of the failed pass.
        if left:
            free_memory()
            again = [i for i in rows if i in left]
            middle = (len(again) + 1) // 2
            waiting[:0] = [again[:middle], again[middle:]]


@torch.inference_mode()
def _batch(
    model: Any,
    rows: list[int],
    prompts: list[list[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    pick: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[Answer]:
    """Answer a batch of prompts; `rows` are their indices. Shapes: [rows left, tokens so far]."""
    device = model.device
    cache = DynamicCache(config=decoder_config(model))
    last_only = _last_only(model)
    shared = _read_shared(model, cache, prompts, last_only)
    prompts = [prompt[shared:] for prompt in prompts]
    width = max(len(prompt) for prompt in prompts)
    # Padding goes to the left, so that every row's next token stands in the last column.
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[1] * shared + [0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
    answers: list[list[int]] = [[] for _ in rows]
    alive = list(range(len(rows)))
    for _ in range(max_new_tokens):
        interrupt.check()
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last_only,
        )
        chosen = pick(output.logits[:, -1].float())
        tokens = chosen.tolist()
        staying = [i for i, token in enumerate(tokens) if token not in stop_ids]
        for i, token in enumerate(tokens):
            if token in stop_ids:
                yield Answer(rows[alive[i]], tuple(answers[alive[i]]), stopped=True)
            else:
                answers[alive[i]].append(token)
        if not staying:
            return
        if len(staying) < len(alive):
            keep = torch.tensor(staying, device=device)
            cache.reorder_cache(keep)  # to the rows that stay; `batch_select_indices` leaves out recurrent layers
            chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
            alive = [alive[i] for i in staying]
        ids = chosen.unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
        positions = positions[:, -1:] + 1
    for i in alive:
        yield Answer(rows[i], tuple(answers[i]), stopped=False)


def _read_shared(model: Any, cache: Any, prompts: list[list[int]], last_only: dict[str, int]) -> int:
    """Put what all prompts begin with in the cache, once for all rows; return how many tokens that is.

    Only where every layer sees all that came before by mask alone: padding then stands between beginning and rest.
    """
    most = min(map(len, prompts)) - 1
    shared = next((i for i in range(most) if len({prompt[i] for prompt in prompts}) > 1), most)
    plain = (
        cache.layers
        and all(type(layer) is DynamicLayer for layer in cache.layers)
        and attention_reach(model) == WITHOUT_LIMIT
    )
    if len(prompts) == 1 or shared < _LEAST_SHARED or not plain:
        return 0
    ids = torch.tensor([prompts[0][:shared]], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, **last_only)
    cache.batch_repeat_interleave(len(prompts))
    return shared


def _last_only(model: Any) -> dict[str, int]:
    """Ask for the last position's logits only, where the model knows how to."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(plain.forward).parameters else {}
