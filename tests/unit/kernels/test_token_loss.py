"""The token loss equals the model's own loss, also for architectures that post-process their logits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.opened import KINDS, Opened

from tunesmith.data.token_dataset import Batch
from tunesmith.kernels.token_loss import token_loss

# Settings that make these architectures fail if logits are computed from the output layer's weight alone.
SPECIAL = {"gemma2": "final_logit_softcapping", "granite": "logits_scaling"}


def batch(rows: int = 3, length: int = 24, seed: int = 0) -> Batch:
    """Return rows of random length, tokens and trained positions, padded with a token that also occurs in the text."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 300, (rows, length), generator=generator)
    trained = torch.rand((rows, length), generator=generator) < 0.4
    trained[:, 0] = False
    trained[:, 1] = True
    for row, end in enumerate(torch.randint(length // 2, length, (rows - 1,), generator=generator).tolist()):
        ids[row, end:] = 5
        trained[row, end:] = False
    owner = torch.arange(rows).unsqueeze(1).expand(rows, length)
    return Batch(ids, trained, owner, rows * length)


def own_loss(model: Any, rows: Batch) -> torch.Tensor:
    """Return the loss as transformers computes it, over all positions and with an attention mask."""
    labels = rows.input_ids.masked_fill(~rows.loss_mask, -100)
    last = rows.loss_mask.int().cumsum(1).argmax(1)
    mask = (torch.arange(rows.input_ids.shape[1]) <= last.unsqueeze(1)).long()
    loss: torch.Tensor = model(input_ids=rows.input_ids, attention_mask=mask, labels=labels, use_cache=False).loss
    return loss


def gradients(model: Any) -> dict[str, torch.Tensor]:
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


@pytest.mark.parametrize("kind", KINDS)
def test_token_loss_and_gradients_equal_the_model_s_own(opened: Opened, kind: str) -> None:
    model, rows = opened(kind), batch()
    if kind in SPECIAL:
        assert getattr(model.config, SPECIAL[kind]) not in (None, 0, 1)
    model.requires_grad_(True)
    expected = own_loss(model, rows)
    expected.backward()
    expected_gradients = gradients(model)
    result = token_loss(model, rows)
    loss = result.nll.mean()
    loss.backward()
    actual = gradients(model)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    assert actual.keys() == expected_gradients.keys()
    assert len(actual) > 10
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()) + 1e-9)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_chunked_gradients_with_token_weights_equal_unchunked(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, kind: str, autocast: bool
) -> None:
    model, rows = opened(kind), batch()
    model.requires_grad_(True)
    results = []
    for chunk in (10**9, 7):
        monkeypatch.setattr("tunesmith.kernels.token_loss.LOGITS_CHUNK", chunk)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            nll = token_loss(model, rows).nll
        assert len(nll) > 3 * 7
        (nll * torch.linspace(-1, 2, len(nll))).sum().backward()
        results.append(gradients(model))
    unchunked, chunked = results
    assert unchunked.keys() == chunked.keys()
    for name, gradient in unchunked.items():
        tolerance = (0.05 if autocast else 1e-5) * float(gradient.abs().max())
        torch.testing.assert_close(chunked[name], gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_the_loss(opened: Opened, kind: str) -> None:
    model, rows = opened(kind), batch(rows=2)
    with torch.inference_mode():
        short = token_loss(model, rows).nll
        for pad in (5, 299):
            longer = torch.nn.functional.pad(rows.input_ids, (0, 40), value=pad)
            trained, owner = (torch.nn.functional.pad(value, (0, 40)) for value in (rows.loss_mask, rows.segment_ids))
            padded = Batch(longer, trained, owner, 1)
            torch.testing.assert_close(token_loss(model, padded).nll, short, rtol=1e-5, atol=1e-5)


def test_token_loss_returns_nll_row_and_correctness_of_each_trained_token(opened: Opened) -> None:
    model, rows = opened("llama"), batch(rows=4)
    with torch.inference_mode():
        result = token_loss(model, rows)
        logits = model(input_ids=rows.input_ids).logits
    expected = [
        (row, position)
        for row in range(4)
        for position in range(1, rows.input_ids.shape[1])
        if rows.loss_mask[row, position]
    ]
    assert result.rows.tolist() == [row for row, _ in expected]
    log_probabilities = logits.log_softmax(-1)
    for index, (row, position) in enumerate(expected):
        token = int(rows.input_ids[row, position])
        assert float(result.nll[index]) == pytest.approx(-float(log_probabilities[row, position - 1, token]), rel=1e-4)
        assert bool(result.correct[index]) == (int(logits[row, position - 1].argmax()) == token)


def test_correct_predictions_are_marked(opened: Opened) -> None:
    model = opened("llama")
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        ids[0, 2] = model(input_ids=ids[:, :2]).logits[0, -1].argmax()
        result = token_loss(model, Batch(ids, torch.tensor([[False, False, True]]), torch.zeros(1, 3), 3))
    assert result.correct.tolist() == [True]
    assert result.nll.shape == (1,)


def test_first_token_is_never_predicted(opened: Opened) -> None:
    rows = batch(rows=1)
    marked = replace(rows, loss_mask=rows.loss_mask | (torch.arange(rows.loss_mask.shape[1]) == 0))
    with torch.inference_mode():
        assert torch.equal(token_loss(opened("llama"), marked).nll, token_loss(opened("llama"), rows).nll)


def test_only_trained_positions_reach_the_output_layer(opened: Opened) -> None:
    model, rows = opened("llama"), batch()
    shapes: list[tuple[int, ...]] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape)))
    token_loss(model, rows)
    hook.remove()
    assert shapes == [(1, int(rows.loss_mask.sum()), 320)]


def test_model_is_unchanged_after_an_error(opened: Opened) -> None:
    model = opened("llama")
    ids = torch.randint(3, 300, (2, 9))
    with torch.inference_mode():
        before = model(input_ids=ids).logits
    invalid = Batch(torch.full((1, 4), 10_000), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4), 4)
    with pytest.raises(IndexError):
        token_loss(model, invalid)
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_token_loss_with_a_peft_adapter(opened: Opened, tmp_path: Path) -> None:
    from tunesmith.model.trainable import make_trainable
    from tunesmith.recipe.tuning import LoraTuning

    rows = batch()
    with torch.inference_mode():
        plain = token_loss(opened("gemma2"), rows).nll
        adapted = make_trainable(opened("gemma2"), LoraTuning(method="lora", rank=2), seed=0)
        assert torch.equal(token_loss(adapted, rows).nll, plain)  # B is zero


def test_token_loss_is_fp32_for_a_bf16_model(opened: Opened) -> None:
    model, rows = opened("llama", torch.bfloat16), batch()
    with torch.inference_mode():
        result = token_loss(model, rows)
        reference = token_loss(opened("llama"), rows).nll
    assert result.nll.dtype == torch.float32
    torch.testing.assert_close(result.nll.mean(), reference.mean(), rtol=0.02, atol=0)
