"""One step is one step, however its rows are cut, and no step at all if one of its numbers is not finite."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.train.conftest import FULL, LORA, random_rows, recipe_of

from tunesmith.core.errors import DamagedFile, DoesNotFit, NonFinite
from tunesmith.core.records import StepReport
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.data.token_file import write_tokens
from tunesmith.distributed.process_group import ProcessGroup
from tunesmith.estimate.memory import MemoryEstimate
from tunesmith.fetch.reference import ModelFolder
from tunesmith.kernels.oom import OomRetry
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.adapters import make_trainable, trained_parameters
from tunesmith.model.load import ComputeConfig, load_base
from tunesmith.recipe.schedule import learning_rate_at, plan_steps
from tunesmith.train import loop
from tunesmith.train.loop import Setup, measure, train_steps
from tunesmith.train.optim import clip_gradients, make_optimizer, optimizer_tensors, restore_optimizer

ROWS = 24
NO_DROPOUT = {**LORA, "dropout": 0.0}
Make = Callable[..., tuple[Setup, torch.optim.Optimizer]]


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Make:
    """Return what the loop works with."""
    write_tokens(tmp_path / "tokens.safetensors", random_rows(ROWS, 1))

    def made(
        tuning: dict[str, Any] = NO_DROPOUT, dtype: torch.dtype = torch.float32, **train: Any
    ) -> tuple[Setup, torch.optim.Optimizer]:
        recipe = recipe_of(base, tuning, **{"examples_per_step": 8, "epochs": 2, **train})
        compute = ComputeConfig(torch.device("cpu"), dtype)
        kept = torch.float32 if tuning == FULL and dtype == torch.float16 else dtype  # masters, as `train` keeps them
        model = make_trainable(load_base(ModelFolder("x", base), compute, dtype=kept), recipe.tuning, seed=0)
        tokens = TokenDataset(tmp_path / "tokens.safetensors")
        size = recipe.train.micro_batch
        fitting = OomRetry(MicroBatchPolicy(256, None if size == "auto" else int(size), recipe.train.packing))
        setup = Setup(recipe, plan_steps(recipe, len(tokens)), compute, model, tokens, 2, fitting)
        return setup, make_optimizer(model, recipe.train)

    return made


def weights(model: Any) -> torch.Tensor:
    return torch.cat([weight.detach().flatten().clone() for _, weight in trained_parameters(model)])


def everything(setup: Setup, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return copies of all weights and of the optimizer's state."""
    state = {name: value.clone() for name, value in optimizer_tensors(setup.model, optimizer).items()}
    return state | {name: weight.detach().clone() for name, weight in setup.model.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- one trajectory ---


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_micro_batches_share_one_trajectory(make: Make, tuning: dict[str, Any], dtype: torch.dtype) -> None:
    found: dict[Any, tuple[list[StepReport], torch.Tensor]] = {}
    for size, packing in (
        (8, "never"),
        (1, "never"),
        (2, "never"),
        (2, "always"),
        ("auto", "never"),
        ("auto", "always"),
    ):
        setup, optimizer = make(tuning, dtype, micro_batch=size, packing=packing)
        began = weights(setup.model)
        found[size, packing] = (list(train_steps(setup, optimizer, first_step=0)), weights(setup.model))
    reports, ended = found[8, "never"]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    moved = float((ended - began).norm())
    assert moved > 0.1
    for size, (others, weight) in found.items():
        for one, other in zip(reports, others, strict=True):
            exact = ("step", "learning_rate", "tokens", "trained_tokens")
            assert all(getattr(one, name) == getattr(other, name) for name in exact)
            assert other.loss == pytest.approx(one.loss, rel=2e-6)
            assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)
        off = weight - ended
        assert float(off.norm()) < 2e-3 * moved, size
        # Rounding goes both ways; a mean over micro-batches instead of over tokens would go one way.
        differing = off[off != 0].sign()
        if len(differing) > 100:
            assert abs(float(differing.mean())) < 5 / math.sqrt(len(differing)) + 0.1, size


def test_the_loss_is_a_mean_over_the_trained_tokens_of_the_step(make: Make) -> None:
    setup, optimizer = make(micro_batch=1)
    rows = loop.batch_indices(0, rows=ROWS, examples_per_step=8, total_examples=48, seed=0)
    with torch.inference_mode():
        parts = [token_loss(setup.model, setup.tokens.batch([row], 2)).nll for row in rows]
    [report] = itertools.islice(train_steps(setup, optimizer, first_step=0), 1)
    assert report.loss == pytest.approx(float(torch.cat(parts).mean()), rel=1e-6)
    assert report.loss != pytest.approx(float(torch.stack([part.mean() for part in parts]).mean()), rel=1e-3)
    assert report.trained_tokens == sum(map(len, parts))
    assert report.tokens == sum(int(setup.tokens.lengths[row]) for row in rows)


def test_a_step_is_adamw(make: Make) -> None:
    setup, optimizer = make(FULL, max_gradient_norm=1e9, weight_decay=0.1, warmup_fraction=0.5)
    before = {name: weight.detach().clone() for name, weight in setup.model.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    for name, weight in setup.model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda w, name=name: gradients.update({name: w.grad.clone()}))
    reports = list(itertools.islice(train_steps(setup, optimizer, first_step=0), 1))
    rate = reports[0].learning_rate
    assert rate == pytest.approx(0.01 / 3) == learning_rate_at(setup.recipe, setup.plan, 0)
    norm = math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in gradients.values()))
    assert reports[0].gradient_norm == pytest.approx(norm, rel=1e-5)
    for name, weight in setup.model.named_parameters():
        decay = 0.1 if weight.ndim >= 2 else 0.0  # norms do not decay
        gradient = gradients[name]
        wanted = before[name] * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(weight.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_the_rates_are_those_of_the_plan(make: Make) -> None:
    setup, optimizer = make(warmup_fraction=0.3, schedule="linear")
    reports = list(train_steps(setup, optimizer, first_step=0))
    assert [report.learning_rate for report in reports] == [
        learning_rate_at(setup.recipe, setup.plan, step) for step in range(6)
    ]


def test_gradients_are_gone_between_two_steps_and_dropout_is_on(make: Make) -> None:
    setup, optimizer = make(LORA)
    for _ in train_steps(setup, optimizer, first_step=0):
        assert all(weight.grad is None for _, weight in trained_parameters(setup.model))
        assert setup.model.training
        measure(setup, setup.tokens)
        assert not setup.model.training


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_a_loop_that_starts_later_goes_on_bit_for_bit(make: Make, tuning: dict[str, Any]) -> None:
    setup, optimizer = make(tuning)
    whole = [(report, everything(setup, optimizer)) for report in train_steps(setup, optimizer, first_step=0)]
    setup, optimizer = make(tuning)
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 3))
    torch.manual_seed(77)  # nothing hangs on the generator's state
    torch.rand(5)
    rest = [(report, everything(setup, optimizer)) for report in train_steps(setup, optimizer, first_step=3)]
    for (one, kept), (other, again) in zip(whole[3:], rest, strict=True):
        assert one == other
        assert same(kept, again)


def test_dropout_depends_on_seed_and_step(make: Make) -> None:
    setup, optimizer = make(LORA)
    first = [report.loss for report in train_steps(setup, optimizer, first_step=0)]
    other, optimizer = make(LORA)
    other = replace(other, recipe=setup.recipe.model_copy(update={"seed": 1}))
    assert [report.loss for report in train_steps(other, optimizer, first_step=0)] != first


# --- not finite ---


def poisoned(monkeypatch: pytest.MonkeyPatch, at_call: int, value: float) -> None:
    """Make one micro-batch's loss not finite."""
    calls = itertools.count(1)

    def broken(model: Any, batch: Any) -> Any:
        result = token_loss(model, batch)
        return replace(result, nll=result.nll * value) if next(calls) == at_call else result

    monkeypatch.setattr(loop, "token_loss", broken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at_call", [1, 5, 6])  # the first micro-batch; the first and the last one of step 3
def test_a_loss_that_is_not_finite_moves_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, value: float, at_call: int
) -> None:
    setup, optimizer = make(micro_batch=4)  # of 8 rows a step, so a step is two calls
    poisoned(monkeypatch, at_call, value)
    steps = train_steps(setup, optimizer, first_step=0)
    done = (at_call - 1) // 2
    assert [report.step for report in itertools.islice(steps, done)] == list(range(1, done + 1))
    before = everything(setup, optimizer)
    with pytest.raises(NonFinite, match=f"loss became {value}") as caught:
        next(steps)
    assert same(before, everything(setup, optimizer))
    assert caught.value.exit_code == 7
    assert f"step {done + 1}, rows [" in str(caught.value.where)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
def test_a_gradient_that_is_not_finite_moves_nothing(make: Make, tuning: dict[str, Any], value: float) -> None:
    setup, optimizer = make(tuning)
    steps = train_steps(setup, optimizer, first_step=0)
    next(steps)
    before = everything(setup, optimizer)
    _, weight = list(trained_parameters(setup.model))[-1]

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[-1] = value
        return gradient

    weight.register_hook(spoil)
    with pytest.raises(NonFinite, match="gradient norm"):
        next(steps)
    assert same(before, everything(setup, optimizer))


def test_a_broken_weight_is_noticed_at_once(make: Make) -> None:
    setup, optimizer = make(FULL)
    with torch.no_grad():
        setup.model.get_output_embeddings().weight[7, 0] = math.nan
    with pytest.raises(NonFinite):
        next(train_steps(setup, optimizer, first_step=0))


# --- in fp16 ---


@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
def test_fp16_follows_fp32(make: Make, tuning: dict[str, Any]) -> None:
    setup, optimizer = make(tuning)
    wanted = [report.loss for report in train_steps(setup, optimizer, first_step=0)]
    setup, optimizer = make(tuning, torch.float16)
    reports = list(train_steps(replace(setup, loss_scale=2.0**16), optimizer, first_step=0))
    assert [report.loss for report in reports] == pytest.approx(wanted, rel=2e-2)
    assert wanted[-1] < wanted[0] - 0.05


def test_a_loss_scale_that_overflows_is_halved_and_the_step_taken_again(make: Make) -> None:
    setup, optimizer = make(dtype=torch.float16)
    wanted = list(train_steps(replace(setup, loss_scale=2.0**10), optimizer, first_step=0))
    setup, optimizer = make(dtype=torch.float16)
    found = list(train_steps(replace(setup, loss_scale=2.0**40), optimizer, first_step=0))
    assert 2.0**10 < found[0].loss_scale < 2.0**30
    assert [one.step for one in found] == [one.step for one in wanted]
    assert [one.loss for one in found] == pytest.approx([one.loss for one in wanted], rel=1e-2)
    assert [one.gradient_norm for one in found] == pytest.approx([one.gradient_norm for one in wanted], rel=5e-2)


def test_a_loss_scale_grows_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_STEPS_TO_DOUBLE", 2)
    setup, optimizer = make(dtype=torch.float16)
    found = list(train_steps(replace(setup, loss_scale=2.0**10), optimizer, first_step=0))
    assert [math.log2(report.loss_scale) for report in found] == [10, 10, 11, 11, 12, 12]
    setup, optimizer = make()
    assert {report.loss_scale for report in train_steps(setup, optimizer, first_step=0)} == {1.0}


# --- when memory does not suffice ---


def scarce(setup: Setup, rows: int, from_pass: int) -> list[int]:
    """Let passes of more rows fail from one pass on; return the list that the rows of each pass are noted in."""
    passes: list[int] = []

    def check(module: Any, args: Any, given: dict[str, Any]) -> None:
        passes.append(given["input_ids"].shape[0])
        if len(passes) >= from_pass and passes[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    setup.model.register_forward_pre_hook(check, with_kwargs=True)
    return passes


def test_a_run_that_runs_out_of_memory_goes_on_with_smaller_batches_and_the_same_steps(make: Make) -> None:
    setup, optimizer = make(micro_batch=4, packing="never")
    wanted, ended = list(train_steps(setup, optimizer, first_step=0)), weights(setup.model)
    setup, optimizer = make(micro_batch=4, packing="never")
    passes = scarce(setup, 2, from_pass=4)  # the second half of the second step, with gradients of the first half there
    found = list(train_steps(setup, optimizer, first_step=0))
    assert passes == [4, 4, 4, 4] + [2] * 20
    for one, other in zip(wanted, found, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
        assert (other.tokens, other.trained_tokens) == (one.tokens, one.trained_tokens)
    torch.testing.assert_close(weights(setup.model), ended, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("resident", "trims"), [(0.95, 1), (1.05, 6)])
def test_freed_memory_is_returned_while_a_peak_without_pieces_is_held_between_steps(
    make: Make, monkeypatch: pytest.MonkeyPatch, resident: float, trims: int
) -> None:
    setup, optimizer = make()
    calls = []
    monkeypatch.setattr("tunesmith.train.loop.resident_gib", lambda: resident)
    monkeypatch.setattr("tunesmith.train.loop.trim_heap", lambda: calls.append(1))
    expected = MemoryEstimate(1.0, 0, 0, 0, 0, 0.3, 0, 0, 0, 0)
    assert expected.total == 1.3
    assert len(list(train_steps(replace(setup, expected=expected), optimizer, first_step=0))) == 6
    assert len(calls) == trims


def test_one_row_that_does_not_fit_ends_the_run(make: Make) -> None:
    setup, optimizer = make(packing="never")
    passes = scarce(setup, 0, from_pass=1)
    with pytest.raises(DoesNotFit, match="a single row"):
        next(train_steps(setup, optimizer, first_step=0))
    assert passes[-1] == 1
    assert len(passes) < 6


def test_validation_may_run_out_of_memory_too(make: Make) -> None:
    setup, _ = make(packing="never")
    wanted = measure(setup, setup.tokens)
    passes = scarce(setup, 3, from_pass=1)
    found = measure(setup, setup.tokens)
    assert found.values["loss"] == pytest.approx(wanted.values["loss"], rel=1e-6)
    assert found.tokens == wanted.tokens
    assert max(passes[-5:]) <= 3


# --- measuring ---


@pytest.mark.parametrize("most_tokens", [16, 64, 4096])
def test_a_split_is_measured_token_by_token_however_it_is_cut(make: Make, most_tokens: int) -> None:
    setup, _ = make()
    with torch.inference_mode():
        parts = [token_loss(setup.model.eval(), setup.tokens.batch([row], 2)) for row in range(ROWS)]
    nll = torch.cat([part.nll for part in parts])
    rows: list[int] = []
    cut = replace(setup, oom_retry=OomRetry(MicroBatchPolicy(most_tokens, packing="auto")))
    found = measure(cut, setup.tokens, seen=rows.append)
    assert rows == sorted(rows)
    assert rows[-1] == ROWS
    assert found.tokens == len(nll) == setup.tokens.trained_tokens(range(ROWS))
    assert found.values["loss"] == pytest.approx(float(nll.mean()), rel=1e-5)
    assert found.values["token_accuracy"] == float(torch.cat([part.correct for part in parts]).double().mean())


# --- the optimizer ---


def test_what_decays_is_matrices(make: Make) -> None:
    setup, optimizer = make(FULL, weight_decay=0.3, beta1=0.8, beta2=0.95)
    decays = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert len(decays) == len(list(setup.model.parameters()))
    assert all(decays[id(weight)] == (0.3 if weight.ndim >= 2 else 0.0) for weight in setup.model.parameters())
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)
    lora, optimizer = make(weight_decay=0.3)
    assert len(optimizer.param_groups) == 1  # adapters have no vectors
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(trained_parameters(lora.model)))


OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor", "sgd")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
def test_every_optimizer_learns_and_goes_on_from_its_saved_state(
    make: Make, tuning: dict[str, Any], name: str, tmp_path: Path
) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    rate = {"sgd": 0.5, "adafactor": 0.1}.get(name, 0.01)
    settings = {"optimizer": name, "learning_rate": rate, "epochs": 6, "schedule": "constant"}
    setup, optimizer = make(tuning, **settings)
    reports = list(train_steps(setup, optimizer, first_step=0))
    assert reports[-1].loss < reports[0].loss - 0.05
    wanted = weights(setup.model)
    first, optimizer = make(tuning, **settings)
    list(itertools.islice(train_steps(first, optimizer, first_step=0), 7))
    save_file(optimizer_tensors(first.model, optimizer), tmp_path / "optimizer.safetensors")
    second = make_optimizer(first.model, first.recipe.train)
    restore_optimizer(first.model, second, load_file(tmp_path / "optimizer.safetensors"))
    list(train_steps(first, second, first_step=7))
    assert torch.equal(weights(first.model), wanted)


def test_moments_in_8_bits_are_so_for_large_weights(make: Make) -> None:
    pytest.importorskip("bitsandbytes")
    setup, optimizer = make(FULL, optimizer="adamw_8bit")
    next(train_steps(setup, optimizer, first_step=0))
    tensors = optimizer_tensors(setup.model, optimizer)
    assert {str(value.dtype) for key, value in tensors.items() if key.endswith("state1")} == {
        "torch.uint8", "torch.float32",
    }  # fmt: skip


def test_plain_gradient_descent_is_that(make: Make) -> None:
    setup, optimizer = make(FULL, optimizer="sgd", max_gradient_norm=1e9, schedule="constant", warmup_fraction=0.0)
    before = {name: weight.detach().clone() for name, weight in setup.model.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    for name, weight in setup.model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda w, name=name: gradients.update({name: w.grad.clone()}))
    next(train_steps(setup, optimizer, first_step=0))
    for name, weight in setup.model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] - 0.01 * gradients[name])


@pytest.mark.parametrize("most", [0.3, 1e9])
def test_gradients_are_scaled_down_and_never_up(most: float) -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 3.0), torch.tensor([4.0, 0.0])
    norm = math.sqrt(6 * 9 + 16)
    assert clip_gradients(model, most, ProcessGroup()) == pytest.approx(norm)
    after = math.sqrt(float(model.weight.grad.pow(2).sum() + model.bias.grad.pow(2).sum()))
    assert after == pytest.approx(min(norm, most), rel=1e-4)


def test_gradients_that_are_not_finite_are_left_as_they_are() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 3.0), torch.tensor([math.inf, 0.0])
    assert clip_gradients(model, 1.0, ProcessGroup()) == math.inf
    assert float(model.weight.grad[0, 0]) == 3.0


def test_a_weight_without_gradient_is_none_of_ours() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad = torch.ones(2, 3)
    assert clip_gradients(model, 1e9, ProcessGroup()) == pytest.approx(math.sqrt(6))


def test_the_optimizer_s_state_comes_back(make: Make) -> None:
    setup, optimizer = make()
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 2))
    tensors = optimizer_tensors(setup.model, optimizer)
    assert len(tensors) == 3 * len(list(trained_parameters(setup.model)))
    assert {float(value) for name, value in tensors.items() if name.endswith(".step")} == {2.0}
    _, fresh = make()
    restore_optimizer(setup.model, fresh, tensors)
    again = optimizer_tensors(setup.model, fresh)
    assert same(tensors, again)
    assert list(again) == list(tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.clear(),
        lambda tensors: tensors.pop(sorted(tensors)[0]),
        lambda tensors: tensors.update({"elsewhere.exp_avg": torch.zeros(1)}),
    ],
)
def test_another_optimizer_s_state_is_refused(make: Make, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    setup, optimizer = make()
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 1))
    tensors = optimizer_tensors(setup.model, optimizer)
    change(tensors)
    with pytest.raises(DamagedFile, match="optimizer state"):
        restore_optimizer(setup.model, make()[1], tensors)


def test_a_weight_that_no_row_has_reached_has_no_state_and_that_is_no_damage(make: Make) -> None:
    setup, _ = make()
    setup.model.register_parameter("spare", torch.nn.Parameter(torch.ones(2, 2)))
    optimizer = make_optimizer(setup.model, setup.recipe.train)
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 1))
    tensors = optimizer_tensors(setup.model, optimizer)
    assert not any("spare" in name for name in tensors)
    restore_optimizer(setup.model, make_optimizer(setup.model, setup.recipe.train), tensors)
