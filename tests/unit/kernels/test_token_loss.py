"""The loss of the trained tokens is the model's own, for architectures that differ after their output layer too."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.opened import KINDS, Opened

from tunesmith.data.batch import Batch
from tunesmith.kernels.token_loss import token_loss

# What each architecture is here for: it fails where somebody computes logits from the output layer's weight alone.
SPECIAL = {"gemma2": "final_logit_softcapping", "granite": "logits_scaling"}


def batch(rows: int = 3, length: int = 24, seed: int = 0) -> Batch:
    """Return rows of random length, random tokens and random trained positions, padded with an id of the text."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 300, (rows, length), generator=made)
    trained = torch.rand((rows, length), generator=made) < 0.4
    trained[:, 0] = False
    trained[:, 1] = True
    for row, end in enumerate(torch.randint(length // 2, length, (rows - 1,), generator=made).tolist()):
        ids[row, end:] = 5
        trained[row, end:] = False
    owner = torch.arange(rows).unsqueeze(1).expand(rows, length)
    return Batch(ids, trained, owner, rows * length)


def own_loss(model: Any, one: Batch) -> torch.Tensor:
    """Return the loss as transformers computes it, over all positions, with the mask it documents."""
    labels = one.input_ids.masked_fill(~one.loss_mask, -100)
    last = one.loss_mask.int().cumsum(1).argmax(1)
    mask = (torch.arange(one.input_ids.shape[1]) <= last.unsqueeze(1)).long()
    loss: torch.Tensor = model(input_ids=one.input_ids, attention_mask=mask, labels=labels, use_cache=False).loss
    return loss


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_its_gradients_are_the_model_s_own(opened: Opened, kind: str) -> None:
    model, one = opened(kind), batch()
    if kind in SPECIAL:
        assert getattr(model.config, SPECIAL[kind]) not in (None, 0, 1)
    model.requires_grad_(True)
    expected = own_loss(model, one)
    expected.backward()
    wanted = gradients(model)
    result = token_loss(model, one)
    loss = result.nll.mean()
    loss.backward()
    found = gradients(model)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    assert found.keys() == wanted.keys()
    assert len(found) > 10
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()) + 1e-9)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_tokens_of_different_weights_in_chunks_give_the_gradients_of_one_pass(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, kind: str, autocast: bool
) -> None:
    model, one = opened(kind), batch()
    model.requires_grad_(True)
    found = []
    for chunk in (10**9, 7):
        monkeypatch.setattr("tunesmith.kernels.token_loss.LOGITS_CHUNK", chunk)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            nll = token_loss(model, one).nll
        assert len(nll) > 3 * 7
        (nll * torch.linspace(-1, 2, len(nll))).sum().backward()
        found.append(gradients(model))
    whole, chunked = found
    assert whole.keys() == chunked.keys()
    for name, gradient in whole.items():
        tolerance = (0.05 if autocast else 1e-5) * float(gradient.abs().max())
        torch.testing.assert_close(chunked[name], gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(opened: Opened, kind: str) -> None:
    model, one = opened(kind), batch(rows=2)
    with torch.inference_mode():
        short = token_loss(model, one).nll
        for pad in (5, 299):
            longer = torch.nn.functional.pad(one.input_ids, (0, 40), value=pad)
            trained, owner = (torch.nn.functional.pad(value, (0, 40)) for value in (one.loss_mask, one.segment_ids))
            padded = Batch(longer, trained, owner, 1)
            torch.testing.assert_close(token_loss(model, padded).nll, short, rtol=1e-5, atol=1e-5)


def test_each_trained_token_has_its_loss_its_row_and_whether_it_was_right(opened: Opened) -> None:
    model, one = opened("llama"), batch(rows=4)
    with torch.inference_mode():
        result = token_loss(model, one)
        logits = model(input_ids=one.input_ids).logits
    wanted = [
        (row, place) for row in range(4) for place in range(1, one.input_ids.shape[1]) if one.loss_mask[row, place]
    ]
    assert result.rows.tolist() == [row for row, _ in wanted]
    log_probabilities = logits.log_softmax(-1)
    for index, (row, place) in enumerate(wanted):
        token = int(one.input_ids[row, place])
        assert float(result.nll[index]) == pytest.approx(-float(log_probabilities[row, place - 1, token]), rel=1e-4)
        assert bool(result.correct[index]) == (int(logits[row, place - 1].argmax()) == token)


def test_right_answers_are_counted(opened: Opened) -> None:
    model = opened("llama")
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        ids[0, 2] = model(input_ids=ids[:, :2]).logits[0, -1].argmax()
        result = token_loss(model, Batch(ids, torch.tensor([[False, False, True]]), torch.zeros(1, 3), 3))
    assert result.correct.tolist() == [True]
    assert result.nll.shape == (1,)


def test_the_first_token_is_not_predicted_even_if_it_is_marked(opened: Opened) -> None:
    one = batch(rows=1)
    marked = replace(one, loss_mask=one.loss_mask | (torch.arange(one.loss_mask.shape[1]) == 0))
    with torch.inference_mode():
        assert torch.equal(token_loss(opened("llama"), marked).nll, token_loss(opened("llama"), one).nll)


def test_only_trained_positions_reach_the_output_layer(opened: Opened) -> None:
    model, one = opened("llama"), batch()
    seen: list[tuple[int, ...]] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(tuple(out.shape)))
    token_loss(model, one)
    hook.remove()
    assert seen == [(1, int(one.loss_mask.sum()), 320)]


def test_the_model_is_left_as_it_was_even_after_an_error(opened: Opened) -> None:
    model = opened("llama")
    ids = torch.randint(3, 300, (2, 9))
    with torch.inference_mode():
        before = model(input_ids=ids).logits
    outside = Batch(torch.full((1, 4), 10_000), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4), 4)
    with pytest.raises(IndexError):
        token_loss(model, outside)
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_it_is_the_same_inside_peft(opened: Opened, tmp_path: Path) -> None:
    from tunesmith.model.adapters import make_trainable
    from tunesmith.recipe.tuning import LoraTuning

    one = batch()
    with torch.inference_mode():
        plain = token_loss(opened("gemma2"), one).nll
        adapted = make_trainable(opened("gemma2"), LoraTuning(method="lora", rank=2), seed=0)
        assert torch.equal(token_loss(adapted, one).nll, plain)  # B is zero


def test_the_loss_is_in_full_precision_whatever_the_model_computes_in(opened: Opened) -> None:
    model, one = opened("llama", torch.bfloat16), batch()
    with torch.inference_mode():
        result = token_loss(model, one)
        reference = token_loss(opened("llama"), one).nll
    assert result.nll.dtype == torch.float32
    torch.testing.assert_close(result.nll.mean(), reference.mean(), rtol=0.02, atol=0)
