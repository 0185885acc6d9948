"""Answers to many prompts, the longest first; rows leave as soon as they have stopped.

If the model can, each row is written in a slot of its own, and the next prompt enters when a slot gets free. Otherwise,
and for beams, rows go in padded batches that are not refilled. If memory does not suffice, fewer go side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from tunesmith.architecture.base_model import require_embedding_rows
from tunesmith.core import interrupt
from tunesmith.core.errors import DoesNotFit
from tunesmith.distributed.fsdp import is_sharded
from tunesmith.inference.beams import beam_search
from tunesmith.inference.decoding import Decoding, shared_prefix_length, start_decoding
from tunesmith.inference.request import Answer, Limits, Request, StopStrings, advance
from tunesmith.inference.sampling import GREEDY, Sampling, refuse_contradictions
from tunesmith.inference.session import Session
from tunesmith.inference.slot_check import slot_budget
from tunesmith.model.memory import free_memory, is_out_of_memory

_HINT = "lower evaluate.max_new_tokens, evaluate.beams or data.max_tokens_per_example"
# Rows side by side. In slots more cost no padding, and every product of a step has as many rows.
_IN_SLOTS, _PADDED = 64, 32


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    decoder_start_ids: Sequence[int] = (),
    beams: int = 1,
    batch_rows: int | None = None,
    sampling: Sequence[Sampling] = (),
    stop_strings: StopStrings | None = None,
    continue_on_oom: bool = False,
) -> Iterator[Answer]:
    """Yield one answer a prompt, in the order in which they finish.

    Args:
        prompts: ids of each prompt; with an encoder, what it reads.
        stop_ids: ids after which an answer is over.
        max_new_tokens: limit of an answer.
        decoder_start_ids: ids that a decoder beside an encoder goes on from.
        beams: width of the beam search; 1 is greedy.
        batch_rows: most rows side by side, a row for each beam; changes speed and memory, and in fp32 not the answers.
        sampling: how the tokens of each answer are chosen; by default all are greedy.
        stop_strings: texts after which an answer is over.
        continue_on_oom: yield an answer with an error where memory does not suffice for one prompt alone.

    Raises:
        RecipeError: a prompt holds tokens that the model has no vectors for, or beams are combined with sampling.
        DoesNotFit: memory does not suffice for one prompt alone, and `continue_on_oom` is not set.
    """
    highest = max((max(prompt, default=-1) for prompt in prompts), default=-1)
    require_embedding_rows(highest, int(model.get_input_embeddings().weight.shape[0]), where="prompt")
    sampling = sampling or [GREEDY] * len(prompts)
    drawn = next((one for one in sampling if one != GREEDY), GREEDY)
    refuse_contradictions(drawn, beams=beams, stop=stop_strings.texts if stop_strings else ())
    limits = Limits(max_new_tokens, tuple(stop_ids), stop_strings)
    left = dict.fromkeys(sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)))
    # A single prompt gains nothing from slots. `slot_budget` makes forward passes to check the model; ranks that share
    # layers would not make them in step.
    room = slot_budget(model, prompts) if beams == 1 and len(prompts) > 1 and not is_sharded(model) else None
    most = size = max(1, (batch_rows or (_IN_SLOTS if room else _PADDED)) // beams)
    while left:
        rows = list(left)
        lengths = [len(prompts[i]) + max_new_tokens for i in rows]
        rows = rows[: room.alike(lengths, size) if room else size]
        asked = [prompts[i] for i in rows]
        chosen = [sampling[i] for i in rows]
        try:
            if room:
                found = _in_slots(model, asked, limits, chosen, min(len(rows), room.slots(lengths[0], size)))
            else:
                found = _padded(model, asked, limits, chosen, decoder_start_ids, beams)
            for answer in found:
                index = rows[answer.index]
                del left[index]
                yield replace(answer, index=index)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if is_sharded(model):  # others are in the same pass, which cannot be made again
                raise DoesNotFit(f"memory does not suffice to answer {size} prompts at once", hint=_HINT) from error
            if size == 1 and not continue_on_oom:
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


def _in_slots(
    model: Any, prompts: Sequence[Sequence[int]], limits: Limits, sampling: Sequence[Sampling], slots: int
) -> Iterator[Answer]:
    """Answer prompts in `slots` slots; the next prompt enters when an answer is complete."""
    session = Session(
        model,
        slots=slots,
        room=max(map(len, prompts)) + limits.max_new_tokens,
        beginning=prompts[0][: shared_prefix_length(prompts)],
    )
    for prompt, one in zip(prompts, sampling, strict=True):
        session.submit(prompt, limits, one)  # ids count from 0, as places do
    while session.busy:
        interrupt.check()
        session.step()
        yield from session.finished()


@torch.inference_mode()
def _padded(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    sampling: Sequence[Sampling],
    decoder_start_ids: Sequence[int],
    beams: int,
) -> Iterator[Answer]:
    """Answer prompts, all at a time."""
    state = start_decoding(model, prompts, decoder_start_ids)
    if beams == 1:
        rows = [
            Request(i, p, limits, one, decoder_start_ids)
            for i, (p, one) in enumerate(zip(prompts, sampling, strict=True))
        ]
        yield from _written(state, rows)
        return
    found = beam_search(
        state, len(prompts), beams=beams, stop_ids=limits.stop_ids, max_new_tokens=limits.max_new_tokens
    )
    for place, ids, stopped in found:
        yield Answer(place, ids, stopped)


def _written(state: Decoding, rows: Sequence[Request]) -> Iterator[Answer]:
    """Write a token of every row at a time, and yield answers as rows finish."""
    while rows:
        interrupt.check()
        tokens, answers = advance(rows, state.logits())
        yield from (answer for answer in answers if answer is not None)
        staying = [place for place, answer in enumerate(answers) if answer is None]
        if len(staying) < len(rows):
            rows = [rows[place] for place in staying]
            state.take(torch.tensor(staying, device=state.device, dtype=torch.long))
        state.choose(torch.tensor([tokens[place] for place in staying], device=state.device, dtype=torch.long))
