"""Beam search gives the same answers as transformers, with and without an encoder, in any batch."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.support.opened import Opened
from tests.support.tiny import SEQ2SEQ
from tests.unit.inference.test_generate import ForwardPasses, frequent, ours, prompts

from tunesmith.inference.generate import generate

LIMIT = 14
STOPS = range(4, 320, 30)
DECODERS = ("llama", "gemma3_text", "qwen2", "lfm2")
IdsAndStopped = tuple[tuple[int, ...], bool]


def of_transformers(
    model: Any, prompt: Sequence[int], beams: int, stop_ids: Sequence[int], limit: int
) -> IdsAndStopped:
    """Return the best answer of transformers, and whether a stop id ended it."""
    ids = torch.tensor([list(prompt)])
    has_encoder = model.config.is_encoder_decoder
    start = {"decoder_start_token_id": 2} if has_encoder else {}
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=beams, do_sample=False, max_new_tokens=limit,
        pad_token_id=0, eos_token_id=list(stop_ids), **start,
    )[0, 1 if has_encoder else len(prompt) :].tolist()  # fmt: skip
    return (tuple(answer[:-1]), True) if answer[-1] in stop_ids else (tuple(answer), False)


def beam_answers(model: Any, rows: Sequence[Sequence[int]], **settings: Any) -> list[IdsAndStopped]:
    decoder_prefix_ids = (2,) if model.config.is_encoder_decoder else ()
    return ours(model, rows, decoder_prefix_ids=decoder_prefix_ids, max_new_tokens=LIMIT, **settings)


def flatten_logits(_: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
    """Make the logits flatter and stop ids likelier; otherwise a random model would never stop."""
    flat = (out - out.mean(-1, keepdim=True)) / out.std(-1, keepdim=True)
    flat = torch.where(flat > 3, 3 + (flat - 3) / 10, flat)
    flat[..., list(STOPS)] += 1
    return flat


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*DECODERS, *SEQ2SEQ])
def test_beam_search_gives_the_answers_of_transformers(opened: Opened, kind: str) -> None:
    model, rows = opened(kind), prompts(4)
    model.get_output_embeddings().register_forward_hook(flatten_logits)
    ended = set()
    for beams, stops in ((2, STOPS[:4]), (4, STOPS[:1]), (3, STOPS)):
        wanted = [of_transformers(model, prompt, beams, stops, LIMIT) for prompt in rows]
        assert beam_answers(model, rows, beams=beams, stop_ids=stops) == wanted
        assert beam_answers(model, rows, beams=beams, stop_ids=stops, batch_rows=1) == wanted
        ended |= {(stopped, len(ids)) for ids, stopped in wanted}
    assert len(ended) > 1


def test_beam_search_finds_likelier_answers_than_greedy_decoding(opened: Opened) -> None:
    model, rows = opened("llama"), prompts()

    def likelihood(prompt: list[int], ids: Sequence[int]) -> float:
        whole = torch.tensor([[*prompt, *ids]])
        scores = model(input_ids=whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(scores[torch.arange(len(ids)), torch.tensor(ids)].sum())

    with torch.inference_mode():
        found = {
            beams: [
                likelihood(prompt, ids)
                for prompt, (ids, _) in zip(rows, beam_answers(model, rows, beams=beams), strict=True)
            ]
            for beams in (1, 8)
        }
    assert sum(found[8]) > sum(found[1])


def test_a_single_beam_is_greedy(opened: Opened) -> None:
    model, rows = opened("t5"), prompts()
    assert beam_answers(model, rows, beams=1) == beam_answers(model, rows)


def test_finished_rows_leave_the_batch_with_all_their_beams(opened: Opened) -> None:
    model, rows = opened("llama"), prompts()
    stop_ids = frequent(beam_answers(model, rows))
    with ForwardPasses(model) as passes:
        beam_answers(model, rows, beams=3, stop_ids=stop_ids)
    assert passes.rows[0] == 6  # prompts are read before rows are widened to beams
    assert passes.rows[1] == 18
    assert all(rows % 3 == 0 for rows in passes.rows[1:])
    assert passes.rows[-1] < 18
    with ForwardPasses(model) as passes:
        list(generate(model, rows, stop_ids=stop_ids, max_new_tokens=3, beams=4, batch_rows=8))
    assert max(passes.rows) == 8


def test_beam_search_with_a_limit_of_one_token(opened: Opened) -> None:
    model, rows = opened("t5"), prompts()
    wanted = [of_transformers(model, prompt, 3, [7], 1) for prompt in rows]
    assert ours(model, rows, decoder_prefix_ids=(2,), max_new_tokens=1, beams=3, stop_ids=[7]) == wanted
