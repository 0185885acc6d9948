"""The loss weighs the tokens of each source, and a step is divided by the sum of the weights."""

import pytest
import torch
from tests.support.tokens import dataset_of

from tunesmith.core.records import LOSS_WEIGHT, TokenizedExample
from tunesmith.kernels.token_loss import TokenLoss
from tunesmith.objectives.sft import SFT

NLL, ROWS = torch.tensor([1.0, 2.0, 4.0], requires_grad=True), torch.tensor([0, 0, 1])
CORRECT = torch.tensor([True, False, True])


def example(name: str, *weight: float) -> TokenizedExample:
    """Return an example with two predicted trained tokens."""
    return TokenizedExample(name, (5, 6, 7), (False, True, True), {LOSS_WEIGHT: weight} if weight else {})


def test_tokens_have_the_weight_of_their_source() -> None:
    weighted = TokenLoss(NLL, CORRECT, ROWS, {LOSS_WEIGHT.name: torch.tensor([0.5, 3.0])})
    loss = SFT.loss(weighted)
    assert loss.item() == 0.5 * 3 + 3 * 4
    assert torch.autograd.grad(loss, NLL)[0].tolist() == [0.5, 0.5, 3.0]
    assert SFT.loss(TokenLoss(NLL, CORRECT, ROWS)).item() == 7
    validated, tokens = SFT.measures[0].sums(weighted)
    assert (validated.item(), tokens) == (7, 3)  # validation is not weighted


def test_a_step_is_divided_by_the_sum_of_the_weights() -> None:
    rows = dataset_of([example("a", 0.5), example("b", 3.0), example("c", 1.0)])
    assert SFT.divisor(rows, [0, 1]) == 2 * 0.5 + 2 * 3
    assert SFT.divisor(rows, [2, 2]) == 4
    assert SFT.divisor(dataset_of([example("a"), example("b")]), [0, 1]) == 4


@pytest.mark.parametrize("shared", [0, 1])
def test_packed_batches_keep_the_weight_of_each_sequence(shared: int) -> None:
    batch = dataset_of([example("a", 0.5), example("b", 3.0)]).packed([0, 1], 0, shared=shared)
    assert batch.columns[LOSS_WEIGHT].tolist() == [0.5, 3.0]
