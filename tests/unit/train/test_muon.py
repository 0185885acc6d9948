"""Muon equals torch's own for whole matrices, and orthogonalizes the matrices of hidden layers only."""

from typing import Any

import pytest
import torch
from tests.support.opened import Opened
from tests.unit.train.conftest import FULL, NO_DROPOUT, MakeSetup

from tunesmith.architecture.families import shapes_of
from tunesmith.estimate.activations import MicroBatchShape
from tunesmith.estimate.memory import estimate_memory
from tunesmith.train import muon
from tunesmith.train.loop import train_steps
from tunesmith.train.muon import Muon, hidden_matrices, orthogonalize
from tunesmith.train.optim import make_optimizer, optimizer_tensors

SHAPES = pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)], ids=str)


@SHAPES
def test_updates_equal_torchs_muon_and_adamw(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "has_native_bf16", lambda device: True)  # torch's Muon always computes in bf16
    torch.manual_seed(0)
    matrix, bias = (torch.nn.Parameter(torch.randn(size)) for size in (shape, (4,)))
    expected = [torch.nn.Parameter(weight.detach().clone()) for weight in (matrix, bias)]
    others = [{"params": [bias], "weight_decay": 0.0}]
    optimizer = Muon([matrix], others, lr=1.0, betas=(0.8, 0.95), weight_decay=0.1)
    references = (
        torch.optim.Muon(expected[:1], lr=1.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(expected[1:], lr=1.0, betas=(0.8, 0.95), weight_decay=0.0, fused=True),
    )
    for rate in (0.1, 0.05, 0.02):
        for weight, other in zip((matrix, bias), expected, strict=True):
            weight.grad = torch.randn_like(weight)
            other.grad = weight.grad.clone()
        for group in (*optimizer.param_groups, *(group for one in references for group in one.param_groups)):
            group["lr"] = rate
        for one in (optimizer, *references):
            one.step()
    assert torch.equal(matrix, expected[0])
    assert torch.equal(bias, expected[1])


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_singular_values_become_about_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    experts = torch.randn(3, *shape) * torch.tensor([1e-6, 1.0, 1e6]).view(3, 1, 1)
    result = orthogonalize(experts, dtype).float()
    values = torch.linalg.svdvals(result)
    assert 0.5 < values.min() <= values.max() < 1.3
    for one, whole in zip(experts, result, strict=True):  # each expert is a matrix of its own
        torch.testing.assert_close(orthogonalize(one, dtype).float(), whole)


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert not orthogonalize(torch.zeros(4, 6), torch.float32).any()


@pytest.mark.parametrize("shape", [(64, 64), (64, 512), (512, 64), (3, 64, 128)], ids=str)
def test_entries_of_an_update_are_as_large_as_those_of_adamw(shape: tuple[int, ...]) -> None:
    """About 0.2 times the learning rate (Liu et al. 2025, section 2.2)."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape)
    Muon([weight], [], lr=0.01, betas=(0.9, 0.999), weight_decay=0.0).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.3)


@pytest.mark.parametrize(
    ("kind", "hidden", "others"),
    [
        ("llama", ["q_proj.weight", "down_proj.weight"], ["embed_tokens.weight", "lm_head.weight", "norm.weight"]),
        ("gemma2", ["q_proj.weight", "down_proj.weight"], ["embed_tokens.weight", "norm.weight"]),  # a tied output
        ("gpt2", ["c_attn.weight", "c_fc.weight"], ["wte.weight", "wpe.weight", "c_attn.bias", "ln_f.weight"]),
        ("t5", ["SelfAttention.q.weight", "wo.weight"], ["shared.weight", "relative_attention_bias.weight"]),
        ("mixtral", ["experts.gate_up_proj", "experts.down_proj"], ["embed_tokens.weight", "lm_head.weight"]),
        ("mamba", ["in_proj.weight", "out_proj.weight"], ["conv1d.weight", "A_log", "embeddings.weight"]),
    ],
)
def test_only_matrices_of_hidden_layers_are_orthogonalized(
    opened: Opened, kind: str, hidden: list[str], others: list[str]
) -> None:
    model = opened(kind)
    ids = {id(weight) for weight in hidden_matrices(model)}
    orthogonalized = {name: id(weight) in ids for name, weight in model.named_parameters()}
    for endings, expected in ((hidden, True), (others, False)):
        for ending in endings:
            assert {value for name, value in orthogonalized.items() if name.endswith(ending)} == {expected}, ending


@pytest.mark.parametrize(
    "tuning",
    [
        FULL, {**FULL, "freeze": ["embed_tokens", "layers.0"]}, {**FULL, "freeze": ["layers"]}, NO_DROPOUT,
        {**NO_DROPOUT, "dora": True},
    ],
    ids=str,
)  # fmt: skip
def test_the_state_has_the_estimated_size(new_setup: MakeSetup, base: Any, tuning: dict[str, Any]) -> None:
    setup, optimizer = new_setup(tuning, optimizer="muon")
    next(train_steps(setup, optimizer, first_step=0))
    tensors = optimizer_tensors(setup.model, optimizer)
    size = sum(tensor.nbytes for name, tensor in tensors.items() if not name.endswith(".step"))
    estimate = estimate_memory(setup.recipe, shapes_of(base), MicroBatchShape(0, 0, 0), compute_bytes=4)
    assert estimate.optimizer * 2**30 == pytest.approx(size)
    assert any(name.endswith(".momentum") for name in tensors) == (tuning.get("freeze") != ["layers"])


def test_all_trained_weights_may_be_matrices(new_setup: MakeSetup) -> None:
    setup, _ = new_setup({**FULL, "freeze": ["embed_tokens", "lm_head", "*norm*"]}, optimizer="muon")
    optimizer = make_optimizer(setup.model, setup.recipe.train)
    next(train_steps(setup, optimizer, first_step=0))
    assert {name.rpartition(".")[2] for name in optimizer_tensors(setup.model, optimizer)} == {"momentum"}
