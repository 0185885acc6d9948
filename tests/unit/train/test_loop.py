"""Steps do not depend on the micro-batches, equal formulas, resume bit for bit, and never apply a non-finite update."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.errors import raises
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
    """Return a function that makes a Setup and its optimizer."""
    write_tokens(tmp_path / "tokens.safetensors", random_rows(ROWS, 1))

    def job(
        tuning: dict[str, Any] = NO_DROPOUT, dtype: torch.dtype = torch.float32, **train: Any
    ) -> tuple[Setup, torch.optim.Optimizer]:
        recipe = recipe_of(base, tuning, **{"examples_per_step": 8, "epochs": 2, **train})
        compute = ComputeConfig(torch.device("cpu"), dtype)
        master_dtype = torch.float32 if tuning == FULL and dtype == torch.float16 else dtype
        model = make_trainable(load_base(ModelFolder("x", base), compute, dtype=master_dtype), recipe.tuning, seed=0)
        tokens = TokenDataset(tmp_path / "tokens.safetensors")
        size = recipe.train.micro_batch
        oom_retry = OomRetry(MicroBatchPolicy(256, None if size == "auto" else int(size), recipe.train.packing))
        setup = Setup(recipe, plan_steps(recipe, len(tokens)), compute, model, tokens, 2, oom_retry)
        return setup, make_optimizer(model, recipe.train)

    return job


def weights(model: Any) -> torch.Tensor:
    return torch.cat([weight.detach().flatten().clone() for _, weight in trained_parameters(model)])


def all_state(setup: Setup, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return copies of all weights and of the optimizer's state."""
    state = {name: value.clone() for name, value in optimizer_tensors(setup.model, optimizer).items()}
    return state | {name: weight.detach().clone() for name, weight in setup.model.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- trajectory ---


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_micro_batch_size_does_not_change_the_trajectory(
    make: Make, tuning: dict[str, Any], dtype: torch.dtype
) -> None:
    results: dict[Any, tuple[list[StepReport], torch.Tensor]] = {}
    for size, packing in (
        (8, "never"),
        (1, "never"),
        (2, "never"),
        (2, "always"),
        ("auto", "never"),
        ("auto", "always"),
    ):
        setup, optimizer = make(tuning, dtype, micro_batch=size, packing=packing)
        initial = weights(setup.model)
        results[size, packing] = (list(train_steps(setup, optimizer, first_step=0)), weights(setup.model))
    reports, final = results[8, "never"]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    distance = float((final - initial).norm())
    assert distance > 0.1
    for size, (other_reports, weight) in results.items():
        for report, other in zip(reports, other_reports, strict=True):
            exact = ("step", "learning_rate", "tokens", "trained_tokens")
            assert all(getattr(report, name) == getattr(other, name) for name in exact)
            assert other.loss == pytest.approx(report.loss, rel=2e-6)
            assert other.gradient_norm == pytest.approx(report.gradient_norm, rel=1e-4)
        error = weight - final
        assert float(error.norm()) < 2e-3 * distance, size
        # Rounding errors have both signs; a mean over micro-batches instead of tokens would be biased.
        signs = error[error != 0].sign()
        if len(signs) > 100:
            assert abs(float(signs.mean())) < 5 / math.sqrt(len(signs)) + 0.1, size


def test_loss_is_the_mean_over_the_trained_tokens_of_the_step(make: Make) -> None:
    setup, optimizer = make(micro_batch=1)
    rows = loop.batch_indices(0, rows=ROWS, examples_per_step=8, total_examples=48, seed=0)
    with torch.inference_mode():
        parts = [token_loss(setup.model, setup.tokens.batch([row], 2)).nll for row in rows]
    [report] = itertools.islice(train_steps(setup, optimizer, first_step=0), 1)
    assert report.loss == pytest.approx(float(torch.cat(parts).mean()), rel=1e-6)
    assert report.loss != pytest.approx(float(torch.stack([part.mean() for part in parts]).mean()), rel=1e-3)
    assert report.trained_tokens == sum(map(len, parts))
    assert report.tokens == sum(int(setup.tokens.lengths[row]) for row in rows)


def test_step_equals_adamw_by_formula(make: Make) -> None:
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
        expected = before[name] * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_learning_rates_follow_the_schedule(make: Make) -> None:
    setup, optimizer = make(warmup_fraction=0.3, schedule="linear")
    reports = list(train_steps(setup, optimizer, first_step=0))
    assert [report.learning_rate for report in reports] == [
        learning_rate_at(setup.recipe, setup.plan, step) for step in range(6)
    ]


def test_gradients_are_cleared_and_train_mode_is_on_between_steps(make: Make) -> None:
    setup, optimizer = make(LORA)
    for _ in train_steps(setup, optimizer, first_step=0):
        assert all(weight.grad is None for _, weight in trained_parameters(setup.model))
        assert setup.model.training
        measure(setup, setup.tokens)
        assert not setup.model.training


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_loop_resumed_at_a_later_step_is_bit_identical(make: Make, tuning: dict[str, Any]) -> None:
    setup, optimizer = make(tuning)
    uninterrupted = [(report, all_state(setup, optimizer)) for report in train_steps(setup, optimizer, first_step=0)]
    setup, optimizer = make(tuning)
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 3))
    torch.manual_seed(77)  # the generator's state must not matter
    torch.rand(5)
    resumed = [(report, all_state(setup, optimizer)) for report in train_steps(setup, optimizer, first_step=3)]
    for (report, state), (other, other_state) in zip(uninterrupted[3:], resumed, strict=True):
        assert report == other
        assert same(state, other_state)


def test_dropout_depends_on_seed_and_step(make: Make) -> None:
    setup, optimizer = make(LORA)
    first = [report.loss for report in train_steps(setup, optimizer, first_step=0)]
    other, optimizer = make(LORA)
    other = replace(other, recipe=setup.recipe.model_copy(update={"seed": 1}))
    assert [report.loss for report in train_steps(other, optimizer, first_step=0)] != first


# --- non-finite values ---


def poison(monkeypatch: pytest.MonkeyPatch, at_call: int, value: float) -> None:
    """Multiply the loss of one micro-batch by a non-finite value."""
    calls = itertools.count(1)

    def broken(model: Any, batch: Any) -> Any:
        result = token_loss(model, batch)
        return replace(result, nll=result.nll * value) if next(calls) == at_call else result

    monkeypatch.setattr(loop, "token_loss", broken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at_call", [1, 5, 6])  # the first micro-batch; the first and the last one of step 3
def test_non_finite_loss_updates_no_weight(
    make: Make, monkeypatch: pytest.MonkeyPatch, value: float, at_call: int
) -> None:
    setup, optimizer = make(micro_batch=4)  # of 8 rows a step, so a step is two calls
    poison(monkeypatch, at_call, value)
    steps = train_steps(setup, optimizer, first_step=0)
    done = (at_call - 1) // 2
    assert [report.step for report in itertools.islice(steps, done)] == list(range(1, done + 1))
    before = all_state(setup, optimizer)
    with raises(NonFinite, "non-finite", value, f"step {done + 1}, rows [") as caught:
        next(steps)
    assert same(before, all_state(setup, optimizer))
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
def test_non_finite_gradient_updates_no_weight(make: Make, tuning: dict[str, Any], value: float) -> None:
    setup, optimizer = make(tuning)
    steps = train_steps(setup, optimizer, first_step=0)
    next(steps)
    before = all_state(setup, optimizer)
    _, weight = list(trained_parameters(setup.model))[-1]

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[-1] = value
        return gradient

    weight.register_hook(spoil)
    with raises(NonFinite, "non-finite", "gradient norm"):
        next(steps)
    assert same(before, all_state(setup, optimizer))


def test_nan_in_a_weight_is_detected_in_the_next_step(make: Make) -> None:
    setup, optimizer = make(FULL)
    with torch.no_grad():
        setup.model.get_output_embeddings().weight[7, 0] = math.nan
    with pytest.raises(NonFinite):
        next(train_steps(setup, optimizer, first_step=0))


# --- fp16 ---


@pytest.mark.parametrize("tuning", [NO_DROPOUT, FULL], ids=["lora", "full"])
def test_fp16_follows_fp32(make: Make, tuning: dict[str, Any]) -> None:
    setup, optimizer = make(tuning)
    expected = [report.loss for report in train_steps(setup, optimizer, first_step=0)]
    setup, optimizer = make(tuning, torch.float16)
    reports = list(train_steps(replace(setup, loss_scale=2.0**16), optimizer, first_step=0))
    assert [report.loss for report in reports] == pytest.approx(expected, rel=2e-2)
    assert expected[-1] < expected[0] - 0.05


def test_loss_scale_is_halved_on_overflow_and_the_step_repeated(make: Make) -> None:
    setup, optimizer = make(dtype=torch.float16)
    expected = list(train_steps(replace(setup, loss_scale=2.0**10), optimizer, first_step=0))
    setup, optimizer = make(dtype=torch.float16)
    reports = list(train_steps(replace(setup, loss_scale=2.0**40), optimizer, first_step=0))
    assert 2.0**10 < reports[0].loss_scale < 2.0**30
    assert [report.step for report in reports] == [report.step for report in expected]
    assert [report.loss for report in reports] == pytest.approx([report.loss for report in expected], rel=1e-2)
    norms = [report.gradient_norm for report in expected]
    assert [report.gradient_norm for report in reports] == pytest.approx(norms, rel=5e-2)


def test_loss_scale_doubles_after_enough_steps(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STEPS_TO_DOUBLE_LOSS_SCALE", 2)
    setup, optimizer = make(dtype=torch.float16)
    reports = list(train_steps(replace(setup, loss_scale=2.0**10), optimizer, first_step=0))
    assert [math.log2(report.loss_scale) for report in reports] == [10, 10, 11, 11, 12, 12]
    setup, optimizer = make()
    assert {report.loss_scale for report in train_steps(setup, optimizer, first_step=0)} == {1.0}


# --- out of memory ---


def limit_memory(setup: Setup, rows: int, from_pass: int) -> list[int]:
    """Let passes with more rows fail from one pass on; return the list to which each pass adds its number of rows."""
    passes: list[int] = []

    def check(module: Any, args: Any, given: dict[str, Any]) -> None:
        passes.append(given["input_ids"].shape[0])
        if len(passes) >= from_pass and passes[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    setup.model.register_forward_pre_hook(check, with_kwargs=True)
    return passes


def test_oom_halves_the_micro_batches_and_keeps_the_steps(make: Make) -> None:
    setup, optimizer = make(micro_batch=4, packing="never")
    expected, final = list(train_steps(setup, optimizer, first_step=0)), weights(setup.model)
    setup, optimizer = make(micro_batch=4, packing="never")
    passes = limit_memory(setup, 2, from_pass=4)  # in the second half of step 2, after the first half left gradients
    reports = list(train_steps(setup, optimizer, first_step=0))
    assert passes == [4, 4, 4, 4] + [2] * 20
    for report, other in zip(expected, reports, strict=True):
        assert other.loss == pytest.approx(report.loss, rel=1e-6)
        assert other.gradient_norm == pytest.approx(report.gradient_norm, rel=1e-5)
        assert (other.tokens, other.trained_tokens) == (report.tokens, report.trained_tokens)
    torch.testing.assert_close(weights(setup.model), final, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("resident", "trims"), [(0.95, 1), (1.05, 6)])
def test_heap_is_trimmed_after_steps_if_resident_memory_exceeds_the_unfragmented_peak(
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


def test_oom_for_a_single_row_ends_the_run(make: Make) -> None:
    setup, optimizer = make(packing="never")
    passes = limit_memory(setup, 0, from_pass=1)
    with raises(DoesNotFit, "out-of-memory", "single row"):
        next(train_steps(setup, optimizer, first_step=0))
    assert passes[-1] == 1
    assert len(passes) < 6


def test_oom_in_validation_halves_the_micro_batches(make: Make) -> None:
    setup, _ = make(packing="never")
    expected = measure(setup, setup.tokens)
    passes = limit_memory(setup, 3, from_pass=1)
    measured = measure(setup, setup.tokens)
    assert measured.values["loss"] == pytest.approx(expected.values["loss"], rel=1e-6)
    assert measured.tokens == expected.tokens
    assert max(passes[-5:]) <= 3


# --- measuring ---


@pytest.mark.parametrize("max_tokens", [16, 64, 4096])
def test_measure_is_a_mean_over_tokens_for_any_micro_batch_size(make: Make, max_tokens: int) -> None:
    setup, _ = make()
    with torch.inference_mode():
        parts = [token_loss(setup.model.eval(), setup.tokens.batch([row], 2)) for row in range(ROWS)]
    nll = torch.cat([part.nll for part in parts])
    progress: list[int] = []
    limited = replace(setup, oom_retry=OomRetry(MicroBatchPolicy(max_tokens, packing="auto")))
    measured = measure(limited, setup.tokens, on_progress=progress.append)
    assert progress == sorted(progress)
    assert progress[-1] == ROWS
    assert measured.tokens == len(nll) == setup.tokens.trained_tokens(range(ROWS))
    assert measured.values["loss"] == pytest.approx(float(nll.mean()), rel=1e-5)
    assert measured.values["token_accuracy"] == float(torch.cat([part.correct for part in parts]).double().mean())


# --- the optimizer ---


def test_weight_decay_applies_to_matrices_only(make: Make) -> None:
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
def test_every_optimizer_learns_and_resumes_from_its_saved_state(
    make: Make, tuning: dict[str, Any], name: str, tmp_path: Path
) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    rate = {"sgd": 0.5, "adafactor": 0.1}.get(name, 0.01)
    settings = {"optimizer": name, "learning_rate": rate, "epochs": 6, "schedule": "constant"}
    setup, optimizer = make(tuning, **settings)
    reports = list(train_steps(setup, optimizer, first_step=0))
    assert reports[-1].loss < reports[0].loss - 0.05
    expected = weights(setup.model)
    first, optimizer = make(tuning, **settings)
    list(itertools.islice(train_steps(first, optimizer, first_step=0), 7))
    save_file(optimizer_tensors(first.model, optimizer), tmp_path / "optimizer.safetensors")
    second = make_optimizer(first.model, first.recipe.train)
    restore_optimizer(first.model, second, load_file(tmp_path / "optimizer.safetensors"))
    list(train_steps(first, second, first_step=7))
    assert torch.equal(weights(first.model), expected)


def test_adamw_8bit_keeps_fp32_moments_of_small_weights(make: Make) -> None:
    pytest.importorskip("bitsandbytes")
    setup, optimizer = make(FULL, optimizer="adamw_8bit")
    next(train_steps(setup, optimizer, first_step=0))
    tensors = optimizer_tensors(setup.model, optimizer)
    assert {str(value.dtype) for key, value in tensors.items() if key.endswith("state1")} == {
        "torch.uint8", "torch.float32",
    }  # fmt: skip


def test_sgd_step_equals_the_formula(make: Make) -> None:
    setup, optimizer = make(FULL, optimizer="sgd", max_gradient_norm=1e9, schedule="constant", warmup_fraction=0.0)
    before = {name: weight.detach().clone() for name, weight in setup.model.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    for name, weight in setup.model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda w, name=name: gradients.update({name: w.grad.clone()}))
    next(train_steps(setup, optimizer, first_step=0))
    for name, weight in setup.model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] - 0.01 * gradients[name])


@pytest.mark.parametrize("max_norm", [0.3, 1e9])
def test_clip_gradients_never_scales_up(max_norm: float) -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 3.0), torch.tensor([4.0, 0.0])
    norm = math.sqrt(6 * 9 + 16)
    assert clip_gradients(model, max_norm, ProcessGroup()) == pytest.approx(norm)
    after = math.sqrt(float(model.weight.grad.pow(2).sum() + model.bias.grad.pow(2).sum()))
    assert after == pytest.approx(min(norm, max_norm), rel=1e-4)


def test_clip_gradients_leaves_non_finite_gradients_unchanged() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 3.0), torch.tensor([math.inf, 0.0])
    assert clip_gradients(model, 1.0, ProcessGroup()) == math.inf
    assert float(model.weight.grad[0, 0]) == 3.0


def test_clip_gradients_ignores_weights_without_gradient() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad = torch.ones(2, 3)
    assert clip_gradients(model, 1e9, ProcessGroup()) == pytest.approx(math.sqrt(6))


def test_optimizer_state_round_trip(make: Make) -> None:
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
def test_optimizer_state_of_another_model_is_refused(
    make: Make, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    setup, optimizer = make()
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 1))
    tensors = optimizer_tensors(setup.model, optimizer)
    change(tensors)
    with raises(DamagedFile, "wrong-optimizer-state"):
        restore_optimizer(setup.model, make()[1], tensors)


def test_weight_without_gradient_has_no_optimizer_state(make: Make) -> None:
    setup, _ = make()
    setup.model.register_parameter("spare", torch.nn.Parameter(torch.ones(2, 2)))
    optimizer = make_optimizer(setup.model, setup.recipe.train)
    list(itertools.islice(train_steps(setup, optimizer, first_step=0), 1))
    tensors = optimizer_tensors(setup.model, optimizer)
    assert not any("spare" in name for name in tensors)
    restore_optimizer(setup.model, make_optimizer(setup.model, setup.recipe.train), tensors)
