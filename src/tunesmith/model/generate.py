"""Answers to many prompts: sorted by length, in batches that rows leave as soon as they have stopped.

A batch that memory does not suffice for is cut in two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.core import interrupt
from tunesmith.core.errors import DoesNotFit
from tunesmith.model.beams import beam_search
from tunesmith.model.decoding import Decoding, decoding
from tunesmith.model.out_of_memory import free_memory, is_out_of_memory

_HINT = "lower evaluate.max_new_tokens, evaluate.beams or data.max_tokens_per_example"


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated ids without the stop token; `stopped` is false when the limit cut the answer off.

    `error` says why there is none.
    """

    index: int
    ids: tuple[int, ...]
    stopped: bool
    error: str | None = None


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    opening: Sequence[int] = (),
    beams: int = 1,
    batch_rows: int = 32,
    pick: Callable[[torch.Tensor], torch.Tensor] | None = None,
    go_on: bool = False,
) -> Iterator[Answer]:
    """Yield one answer a prompt, in the order in which they finish.

    Args:
        prompts: ids of each prompt; with an encoder, what it reads.
        stop_ids: ids after which an answer is over.
        max_new_tokens: limit of an answer.
        opening: ids that a decoder beside an encoder goes on from.
        beams: width of the beam search; 1 is greedy.
        batch_rows: rows side by side, a row for each beam; changes speed and memory, and in fp32 not the answers.
        pick: chooses the next ids [rows] from logits [rows, vocabulary] where there is one beam; default the likeliest.
        go_on: yield an answer with an error where memory does not suffice for one prompt alone.

    Raises:
        DoesNotFit: memory does not suffice for one prompt alone, and `go_on` is not set.
    """
    pick = pick or (lambda logits: logits.argmax(-1))
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    size = max(1, batch_rows // beams)
    waiting = [order[start : start + size] for start in range(0, len(order), size)]
    while waiting:
        rows = waiting.pop(0)
        left = set(rows)
        try:
            for answer in _batch(model, prompts, rows, opening, stop_ids, max_new_tokens, beams, pick):
                left.discard(answer.index)
                yield answer
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1 and not go_on:
                raise DoesNotFit(_too_large(prompts[rows[0]]), hint=_HINT) from error
        # Not inside `except`: the error's traceback holds the tensors of the failed pass.
        if left:
            free_memory()
            again = [i for i in rows if i in left]
            middle = (len(again) + 1) // 2
            if len(rows) == 1:
                yield Answer(rows[0], (), stopped=False, error=_too_large(prompts[rows[0]]))
            else:  # where one is left of several, it is tried again without the others
                waiting[:0] = [half for half in (again[:middle], again[middle:]) if half]


def _too_large(prompt: Sequence[int]) -> str:
    return f"memory does not suffice to answer one prompt of {len(prompt)} tokens"


@torch.inference_mode()
def _batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: list[int],
    opening: Sequence[int],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    beams: int,
    pick: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[Answer]:
    """Answer the prompts with the indices `rows`."""
    state = decoding(model, [prompts[i] for i in rows], opening)
    if beams > 1:
        found = beam_search(state, len(rows), beams=beams, stop_ids=stop_ids, max_new_tokens=max_new_tokens)
    else:
        found = _likeliest(state, len(rows), stop_ids, max_new_tokens, pick)
    for place, ids, stopped in found:
        yield Answer(rows[place], ids, stopped)


def _likeliest(
    state: Decoding,
    rows: int,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    pick: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[tuple[int, tuple[int, ...], bool]]:
    """Yield (row, ids, whether it stopped by itself) as rows finish, taking what `pick` chooses at every step."""
    answers: list[list[int]] = [[] for _ in range(rows)]
    alive = list(range(rows))
    for _ in range(max_new_tokens):
        interrupt.check()
        chosen = pick(state.logits())
        tokens = chosen.tolist()
        staying = [i for i, token in enumerate(tokens) if token not in stop_ids]
        for i, token in enumerate(tokens):
            if token in stop_ids:
                yield alive[i], tuple(answers[alive[i]]), True
            else:
                answers[alive[i]].append(token)
        if not staying:
            return
        if len(staying) < len(alive):
            keep = torch.tensor(staying, device=chosen.device)
            state.take(keep)
            chosen = chosen[keep]
            alive = [alive[i] for i in staying]
        state.choose(chosen)
    for i in alive:
        yield i, tuple(answers[i]), False
