"""Greedy answers to many prompts: sorted by length, in batches that rows leave as soon as they have stopped."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from tunesmith.core import interrupt
from tunesmith.model.load import decoder_config


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
    for start in range(0, len(order), batch_rows):
        rows = order[start : start + batch_rows]
        yield from _batch(model, rows, [list(prompts[i]) for i in rows], stop_ids, max_new_tokens, pick)


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
    width = max(len(prompt) for prompt in prompts)
    # Padding goes to the left, so that every row's next token stands in the last column.
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=decoder_config(model))
    last_only = _last_only(model)
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


def _last_only(model: Any) -> dict[str, int]:
    """Ask for the last position's logits only, where the model knows how to."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(plain.forward).parameters else {}
