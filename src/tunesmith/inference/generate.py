"""Generate the answers to many prompts, the longest prompts first; rows leave the batch as soon as they stop.

If the model allows it, each row is generated in a slot, and the next prompt takes the slot of a finished row.
Otherwise, and for beam search, rows are generated in padded batches that are not refilled. If memory runs out, the
batch is halved.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tunesmith.architecture.base_model import require_embedding_rows
from tunesmith.core import interrupt
from tunesmith.core.errors import DoesNotFit
from tunesmith.distributed.fsdp import is_sharded
from tunesmith.inference.beams import beam_search
from tunesmith.inference.decoding import shared_prefix_length, start_decoding
from tunesmith.inference.request import Answer, Limits, Request, StopStrings, advance
from tunesmith.inference.sampling import GREEDY, Sampling, check_generation_options
from tunesmith.inference.session import Session
from tunesmith.inference.slot_check import slot_budget
from tunesmith.model.memory import free_memory, is_out_of_memory

_HINT = "lower evaluate.max_new_tokens, evaluate.beams or data.max_tokens_per_example"
# Rows per batch. Slots need no padding, so more rows only make the matrix products of a step larger.
_ROWS_IN_SLOTS, _PADDED_ROWS = 64, 32


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    decoder_prefix_ids: Sequence[int] = (),
    beams: int = 1,
    batch_rows: int | None = None,
    sampling: Sequence[Sampling] = (),
    stop_strings: StopStrings | None = None,
    continue_on_oom: bool = False,
) -> Iterator[Answer]:
    """Yield one answer per prompt, in the order in which they finish.

    Args:
        prompts: ids of each prompt; the encoder reads them if the model has one.
        stop_ids: ids that end an answer.
        max_new_tokens: the limit of an answer.
        decoder_prefix_ids: ids that the decoder of an encoder-decoder model continues.
        beams: width of the beam search; 1 means no beam search.
        batch_rows: maximum number of rows in a batch, counting each beam. It changes speed and memory, and in fp32
            never the answers.
        sampling: how the tokens of each answer are chosen; by default all are greedy.
        stop_strings: texts that end an answer.
        continue_on_oom: if even a single prompt does not fit in memory, yield an answer with an error for it.

    Raises:
        RecipeError: a prompt has tokens beyond the model's embedding, or beam search is combined with sampling.
        DoesNotFit: even a single prompt does not fit in memory, and `continue_on_oom` is not set.
    """
    highest = max((max(prompt, default=-1) for prompt in prompts), default=-1)
    require_embedding_rows(highest, int(model.get_input_embeddings().weight.shape[0]), where="prompt")
    sampling = sampling or [GREEDY] * len(prompts)
    sampled = next((options for options in sampling if options != GREEDY), GREEDY)
    check_generation_options(sampled, beams=beams, stop=stop_strings.texts if stop_strings else ())
    limits = Limits(max_new_tokens, tuple(stop_ids), stop_strings)
    pending = dict.fromkeys(sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)))
    # A single prompt gains nothing from slots. `slot_budget` runs forward passes to check the model, which ranks that
    # share sharded layers would not run in lockstep.
    budget = slot_budget(model, prompts) if beams == 1 and len(prompts) > 1 and not is_sharded(model) else None
    max_size = size = max(1, (batch_rows or (_ROWS_IN_SLOTS if budget else _PADDED_ROWS)) // beams)
    while pending:
        rows = list(pending)
        lengths = [len(prompts[i]) + max_new_tokens for i in rows]
        rows = rows[: budget.count_similar(lengths, size) if budget else size]
        requests = [Request(i, prompts[i], limits, sampling[i], decoder_prefix_ids) for i in rows]
        try:
            if budget:
                answers = _generate_in_slots(model, requests, min(len(rows), budget.max_slots(lengths[0], size)))
            else:
                answers = _generate_padded(model, requests, beams)
            for answer in answers:
                del pending[answer.index]
                yield answer
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            first = next(iter(pending))  # rows are in order, so this one failed if the batch has one row
            which = f"{size} prompts" if size > 1 else f"one prompt of {len(prompts[first])} tokens"
            problem = f"out of memory while answering {which}"
            # The other ranks of a sharded model are in the same pass, so it cannot be repeated.
            if is_sharded(model) or (size == 1 and not continue_on_oom):
                raise DoesNotFit(problem, hint=_HINT, code="out-of-memory") from error
        else:
            continue
        # Not inside `except`: the error's traceback holds the tensors of the failed pass.
        free_memory()
        if size > 1:
            size = (min(size, len(rows)) + 1) // 2
        else:  # several of the shorter rows may fit
            del pending[first]
            size = max_size
            yield Answer(first, (), stopped=False, error=problem)


def _generate_in_slots(model: Any, requests: Sequence[Request], slots: int) -> Iterator[Answer]:
    prompts = [request.prompt for request in requests]
    slot_tokens = max(map(len, prompts)) + requests[0].limits.max_new_tokens
    session = Session(model, slots=slots, slot_tokens=slot_tokens, prefix=prompts[0][: shared_prefix_length(prompts)])
    for request in requests:
        session.add(request)
    while session.busy:
        interrupt.check()
        session.step()
        yield from session.finished()


@torch.inference_mode()
def _generate_padded(model: Any, rows: Sequence[Request], beams: int) -> Iterator[Answer]:
    batch = start_decoding(model, [row.prompt for row in rows], rows[0].decoder_prefix_ids)
    if beams > 1:
        yield from beam_search(batch, rows, beams)
        return
    while rows:
        interrupt.check()
        tokens, answers = advance(rows, batch.logits())
        yield from (answer for answer in answers if answer is not None)
        remaining = [place for place, answer in enumerate(answers) if answer is None]
        if len(remaining) < len(rows):
            rows = [rows[place] for place in remaining]
            batch.select_rows(torch.tensor(remaining, device=batch.device, dtype=torch.long))
        chosen = [tokens[place].id for place in remaining]
        batch.append(torch.tensor(chosen, device=batch.device, dtype=torch.long))
