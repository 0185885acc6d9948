"""Our beam search finds what that of transformers finds, with and without an encoder, in any company."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.support.opened import Opened
from tests.support.tiny import SEQ2SEQ
from tests.unit.inference.test_generate import Watched, frequent, ours, prompts

from tunesmith.inference.generate import generate

LIMIT = 14
STOPS = range(4, 320, 30)
DECODERS = ("llama", "gemma3_text", "qwen2", "lfm2")
Found = tuple[tuple[int, ...], bool]


def of_transformers(model: Any, prompt: Sequence[int], beams: int, stop_ids: Sequence[int], limit: int) -> Found:
    """Return the best answer of transformers, and whether it stopped by itself."""
    ids = torch.tensor([list(prompt)])
    has_encoder = model.config.is_encoder_decoder
    start = {"decoder_start_token_id": 2} if has_encoder else {}
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=beams, do_sample=False, max_new_tokens=limit,
        pad_token_id=0, eos_token_id=list(stop_ids), **start,
    )[0, 1 if has_encoder else len(prompt) :].tolist()  # fmt: skip
    return (tuple(said[:-1]), True) if said[-1] in stop_ids else (tuple(said), False)


def beamed(model: Any, asked: Sequence[Sequence[int]], **settings: Any) -> list[Found]:
    decoder_start_ids = (2,) if model.config.is_encoder_decoder else ()
    return ours(model, asked, decoder_start_ids=decoder_start_ids, max_new_tokens=LIMIT, **settings)


def doubting(_: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
    """Return logits of a model that is less sure of itself and more of stopping; random ones never would."""
    even = (out - out.mean(-1, keepdim=True)) / out.std(-1, keepdim=True)
    even = torch.where(even > 3, 3 + (even - 3) / 10, even)
    even[..., list(STOPS)] += 1
    return even


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*DECODERS, *SEQ2SEQ])
def test_the_best_answer_is_that_of_transformers(opened: Opened, kind: str) -> None:
    model, asked = opened(kind), prompts(4)
    model.get_output_embeddings().register_forward_hook(doubting)
    ended = set()
    for beams, stops in ((2, STOPS[:4]), (4, STOPS[:1]), (3, STOPS)):
        wanted = [of_transformers(model, prompt, beams, stops, LIMIT) for prompt in asked]
        assert beamed(model, asked, beams=beams, stop_ids=stops) == wanted
        assert beamed(model, asked, beams=beams, stop_ids=stops, batch_rows=1) == wanted
        ended |= {(stopped, len(ids)) for ids, stopped in wanted}
    assert len(ended) > 1


def test_beams_find_likelier_answers_than_the_greedy_one(opened: Opened) -> None:
    model, asked = opened("llama"), prompts()

    def likelihood(prompt: list[int], ids: Sequence[int]) -> float:
        whole = torch.tensor([[*prompt, *ids]])
        scores = model(input_ids=whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(scores[torch.arange(len(ids)), torch.tensor(ids)].sum())

    with torch.inference_mode():
        found = {
            beams: [
                likelihood(prompt, ids)
                for prompt, (ids, _) in zip(asked, beamed(model, asked, beams=beams), strict=True)
            ]
            for beams in (1, 8)
        }
    assert sum(found[8]) > sum(found[1])


def test_one_beam_is_greedy(opened: Opened) -> None:
    model, asked = opened("t5"), prompts()
    assert beamed(model, asked, beams=1) == beamed(model, asked)


def test_rows_leave_with_all_their_beams(opened: Opened) -> None:
    model, asked = opened("llama"), prompts()
    stop_ids = frequent(beamed(model, asked))
    with Watched(model) as passes:
        beamed(model, asked, beams=3, stop_ids=stop_ids)
    assert passes.rows[0] == 6  # a prompt is read once, not once for each beam
    assert passes.rows[1] == 18
    assert all(rows % 3 == 0 for rows in passes.rows[1:])
    assert passes.rows[-1] < 18
    with Watched(model) as passes:
        list(generate(model, asked, stop_ids=stop_ids, max_new_tokens=3, beams=4, batch_rows=8))
    assert max(passes.rows) == 8


def test_a_limit_of_one_token(opened: Opened) -> None:
    model, asked = opened("t5"), prompts()
    wanted = [of_transformers(model, prompt, 3, [7], 1) for prompt in asked]
    assert ours(model, asked, decoder_start_ids=(2,), max_new_tokens=1, beams=3, stop_ids=[7]) == wanted
