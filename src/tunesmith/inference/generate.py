"""Answers to many prompts, the longest first; rows leave as soon as they have stopped.

Where the model can, each row is written in a slot of its own, and the next prompt enters when a slot gets free. Else,
and for beams, rows go in padded batches that are not refilled. Where memory does not suffice, fewer go side by side.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.architecture.base_model import refuse_tokens_beyond
from tunesmith.core import interrupt
from tunesmith.core.errors import DoesNotFit
from tunesmith.distributed.fsdp import is_sharded
from tunesmith.inference.beams import beam_search
from tunesmith.inference.decoding import Decoding, common_beginning, decoding
from tunesmith.inference.slot_check import room_for
from tunesmith.inference.slots import Slots
from tunesmith.model.memory import free_memory, is_out_of_memory

_HINT = "lower evaluate.max_new_tokens, evaluate.beams or data.max_tokens_per_example"
# Rows side by side. In slots more cost no padding, and every product of a step has as many rows.
_IN_SLOTS, _PADDED = 64, 32

Pick = Callable[[torch.Tensor], torch.Tensor]


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
    batch_rows: int | None = None,
    pick: Pick | None = None,
    go_on: bool = False,
) -> Iterator[Answer]:
    """Yield one answer a prompt, in the order in which they finish.

    Args:
        prompts: ids of each prompt; with an encoder, what it reads.
        stop_ids: ids after which an answer is over.
        max_new_tokens: limit of an answer.
        opening: ids that a decoder beside an encoder goes on from.
        beams: width of the beam search; 1 is greedy.
        batch_rows: most rows side by side, a row for each beam; changes speed and memory, and in fp32 not the answers.
        pick: chooses the next ids [rows] from logits [rows, vocabulary] where there is one beam; default the likeliest.
        go_on: yield an answer with an error where memory does not suffice for one prompt alone.

    Raises:
        RecipeError: a prompt holds tokens that the model has no vectors for.
        DoesNotFit: memory does not suffice for one prompt alone, and `go_on` is not set.
    """
    highest = max((max(prompt, default=-1) for prompt in prompts), default=-1)
    refuse_tokens_beyond(highest, int(model.get_input_embeddings().weight.shape[0]), where="prompt")
    pick = pick or (lambda logits: logits.argmax(-1))
    left = dict.fromkeys(sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)))
    # One prompt has nothing to win by a slot.
    # Whether slots can be had is tried, which processes that share layers would do at different times.
    room = room_for(model, prompts) if beams == 1 and len(prompts) > 1 and not is_sharded(model) else None
    most = size = max(1, (batch_rows or (_IN_SLOTS if room else _PADDED)) // beams)
    while left:
        rows = list(left)
        lengths = [len(prompts[i]) + max_new_tokens for i in rows]
        rows = rows[: room.alike(lengths, size) if room else size]
        try:
            if room:
                slots = min(len(rows), room.slots(lengths[0], size))
                found = _in_slots(model, prompts, rows, slots, stop_ids, max_new_tokens, pick)
            else:
                found = _padded(model, prompts, rows, opening, stop_ids, max_new_tokens, beams, pick)
            for answer in found:
                del left[answer.index]
                yield answer
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if is_sharded(model):  # others are in the same pass, which cannot be made again
                raise DoesNotFit(f"memory does not suffice to answer {size} prompts at once", hint=_HINT) from error
            if size == 1 and not go_on:
                raise DoesNotFit(_too_large(prompts[next(iter(left))]), hint=_HINT) from error
        else:
            continue
        # Not inside `except`: the error's traceback holds the tensors of the failed pass.
        free_memory()
        if size > 1:
            size = (min(size, len(rows)) + 1) // 2
        else:  # rows are taken in order, so it is the first one; shorter ones may have room side by side
            index = next(iter(left))
            del left[index]
            size = most
            yield Answer(index, (), stopped=False, error=_too_large(prompts[index]))


def _too_large(prompt: Sequence[int]) -> str:
    return f"memory does not suffice to answer one prompt of {len(prompt)} tokens"


@torch.inference_mode()
def _in_slots(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    slots: int,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    pick: Pick,
) -> Iterator[Answer]:
    """Answer the prompts with the indices `rows`, so many at a time; the next one enters when another has left."""
    waiting, alive = deque(rows), list[tuple[int, list[int]]]()
    asked = [prompts[i] for i in rows]
    room = max(map(len, asked)) + max_new_tokens
    state = Slots(model, slots=slots, room=room, beginning=asked[0][: common_beginning(asked)])
    while waiting or alive:
        entering = [waiting.popleft() for _ in range(min(state.free, len(waiting)))]
        state.enter([prompts[i] for i in entering])
        alive += [(i, []) for i in entering]
        interrupt.check()
        tokens = pick(state.logits()).tolist()
        done = []
        for place, (token, (index, ids)) in enumerate(zip(tokens, alive, strict=True)):
            stopped = token in stop_ids
            if not stopped:
                ids.append(token)
            if stopped or len(ids) == max_new_tokens:
                done.append(place)
                yield Answer(index, tuple(ids), stopped)
        stood = state.leave(done)
        alive = [alive[i] for i in stood]
        state.choose([tokens[i] for i in stood])


@torch.inference_mode()
def _padded(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    opening: Sequence[int],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    beams: int,
    pick: Pick,
) -> Iterator[Answer]:
    """Answer the prompts with the indices `rows`, all at a time."""
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
    pick: Pick,
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
