"""Training on 4-bit and 8-bit weights: which layers are quantized, and that a merge uses the base's own weights."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.support.errors import raises
from tests.support.opened import Opened
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_json
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.model.adapters import open_model, save_model
from tunesmith.model.load import ComputeConfig, choose_compute, load_base
from tunesmith.model.lora import use_compute_dtype
from tunesmith.model.quantization import bitsandbytes_config, disable_weight_repacking, require_quantization
from tunesmith.model.trainable import count_parameters, make_trainable, trained_parameters
from tunesmith.recipe.tuning import QloraTuning, Quantization

pytest.importorskip("bitsandbytes")
# bitsandbytes treats weights differently on different CPUs.
pytestmark = pytest.mark.usefixtures("processor")

IDS = torch.arange(5, 45).reshape(2, 20)
FP32, BF16 = (ComputeConfig(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16))
NF4 = Quantization(bits=4)
INT8 = Quantization(bits=8)
QLORA = QloraTuning(method="qlora", rank=4, alpha=8)
BOTH = pytest.mark.parametrize("quantization", [NF4, INT8], ids=str)


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model.eval()(input_ids=ids).logits
        return result


def quantized(folder: Path, quantization: Quantization = NF4, compute: ComputeConfig = FP32) -> Any:
    return load_base(ModelFolder("x", folder), compute, quantization=quantization).eval()


def perturbed(model: Any, seed: int = 1) -> Any:
    """Return the model with random changes to its trained weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in trained_parameters(model):
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


def saved(model: Any, folder: Path, base: ModelFolder, quantization: Quantization | None) -> ModelFolder:
    """Save an adapter with a card that holds the quantization of the base."""
    save_model(model, folder, base=base.reference)
    write_json(folder / CARD, {"quantization": quantization.model_dump() if quantization else None})
    return ModelFolder("tuned", folder, base)


# --- quantized layers ---


@BOTH
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_only_linear_layers_are_quantized(
    folder_of: Callable[[str], Path], opened: Opened, kind: str, quantization: Quantization
) -> None:
    model, unquantized = quantized(folder_of(kind), quantization), opened(kind)
    types = {type(module).__name__ for _, module in model.named_modules()}
    assert {"Linear4bit" if quantization.bits == 4 else "Linear8bitLt"} <= types
    for get in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(model, get)().weight, getattr(unquantized, get)().weight)
    tied = unquantized.get_output_embeddings().weight is unquantized.get_input_embeddings().weight
    assert tied == (kind == "gpt2")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    error = float((logits(model) - logits(unquantized)).norm() / logits(unquantized).norm())
    assert 0 < error < 0.3
    assert count_parameters(model)[1] == count_parameters(unquantized)[1]


def test_fewer_bits_take_less_memory_and_have_a_larger_error(folder_of: Callable[[str], Path], opened: Opened) -> None:
    models = [quantized(folder_of("llama"), quantization) for quantization in (NF4, INT8)] + [opened("llama")]
    sizes = [model.get_memory_footprint() for model in models]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    expected = logits(models[-1])
    errors = [float((logits(model) - expected).norm()) for model in models]
    assert errors[0] > errors[1] > errors[2] == 0


def test_4_bit_code_and_double_quantization_follow_the_settings(folder_of: Callable[[str], Path]) -> None:
    for quantization in (
        NF4,
        Quantization(bits=4, quantization="fp4"),
        Quantization(bits=4, double_quantization=False),
    ):
        state = quantized(folder_of("llama"), quantization).model.layers[0].mlp.up_proj.weight.quant_state
        assert (state.quant_type, state.nested) == (quantization.code, quantization.is_double)


@BOTH
def test_quantized_logits_depend_on_no_other_row_and_no_later_token(
    folder_of: Callable[[str], Path], quantization: Quantization
) -> None:
    model = quantized(folder_of("llama"), quantization)
    with torch.no_grad():  # outliers, which LLM.int8() would search in the whole batch
        for layer in model.model.layers:
            layer.input_layernorm.weight[:8] *= 4
    in_batch = logits(model)
    torch.testing.assert_close(logits(model, IDS[:1]), in_batch[:1])
    torch.testing.assert_close(logits(model, IDS[:1, :7]), in_batch[:1, :7])


@pytest.mark.parametrize("code", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [16, 32, 64, 96, 100])
def test_dequantized_blocks_may_span_rows(width: int, code: str) -> None:
    functional = importlib.import_module("bitsandbytes.functional")
    require_quantization(NF4, torch.device("cpu"), torch.float32)
    weight = torch.randn(20, width, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=code)
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten().long()
    scales = state.absmax.repeat_interleave(64)[: weight.numel()]
    for dtype in (torch.float32, torch.bfloat16):
        state.dtype = dtype
        actual = functional.dequantize_4bit(packed, state)
        torch.testing.assert_close(actual, (state.code[codes] * scales).view(weight.shape).to(dtype))


# --- training ---


@BOTH
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_master_weights_are_trained_in_fp32(
    folder_of: Callable[[str], Path], quantization: Quantization, compute: ComputeConfig
) -> None:
    model = make_trainable(quantized(folder_of("llama"), quantization, compute), QLORA, seed=0)
    assert model.dtype == compute.dtype
    trained = dict(trained_parameters(model))
    assert len(trained) == 28
    perturbed(model)(input_ids=IDS, labels=IDS).loss.backward()
    assert all(weight.dtype == torch.float32 == weight.grad.dtype for weight in trained.values())
    assert all(weight.grad.abs().sum() > 0 for weight in trained.values())


@BOTH
def test_bf16_forward_pass_is_ours_and_as_precise_as_peft_s(
    folder_of: Callable[[str], Path], quantization: Quantization
) -> None:
    def adapted(compute: ComputeConfig) -> Any:
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
        model = perturbed(get_peft_model(quantized(folder_of("llama"), quantization, compute), config))
        return model.eval()

    theirs, mine, exact = adapted(BF16), adapted(BF16), adapted(FP32)
    use_compute_dtype(mine)
    assert sum("forward" in vars(module) for module in mine.modules()) == 14
    use_compute_dtype(exact)  # fp32 layers still use peft's forward
    expected, base = logits(exact), logits(quantized(folder_of("llama"), quantization))
    our_error, peft_error = (float((logits(model).float() - expected).norm()) for model in (mine, theirs))
    assert our_error < 1.5 * peft_error
    assert float((expected - base).norm()) > 2 * our_error
    assert logits(mine).dtype == torch.bfloat16


def test_dora_on_quantized_weights_uses_peft_s_forward(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    tuning = QloraTuning(method="qlora", rank=4, alpha=8, dora=True)
    model = perturbed(make_trainable(quantized(folder_of("llama"), NF4, BF16), tuning, seed=0))
    assert not any("forward" in vars(module) for module in model.modules())
    base = ModelFolder("base", folder_of("llama"))
    assert torch.equal(logits(open_model(saved(model, tmp_path, base, NF4), BF16)), logits(model))


# --- saving, opening and merging ---


@BOTH
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapter_is_opened_with_the_quantization_of_training(
    folder_of: Callable[[str], Path], opened: Opened, tmp_path: Path, kind: str, quantization: Quantization
) -> None:
    model = perturbed(make_trainable(quantized(folder_of(kind), quantization), QLORA, seed=0))
    tuned = saved(model, tmp_path, ModelFolder("base", folder_of(kind)), quantization)
    expected = logits(model)
    assert torch.equal(logits(open_model(tuned, FP32)), expected)
    plain = AutoModelForCausalLM.from_pretrained(
        folder_of(kind), dtype=torch.float32, quantization_config=bitsandbytes_config(quantization, torch.float32)
    )
    disable_weight_repacking(plain)  # repacked weights would have bf16 scales
    assert torch.equal(logits(PeftModel.from_pretrained(plain, str(tmp_path))), expected)
    assert not torch.equal(logits(PeftModel.from_pretrained(opened(kind), str(tmp_path))), expected)


@BOTH
def test_merge_uses_the_unquantized_weights_of_the_base(
    folder_of: Callable[[str], Path], tmp_path: Path, quantization: Quantization
) -> None:
    base = ModelFolder("base", folder_of("llama"))
    model = perturbed(make_trainable(quantized(base.path, quantization), QLORA, seed=0))
    tuned = saved(model, tmp_path, base, quantization)
    merged = open_model(tuned, FP32, merged=True)
    assert not isinstance(merged, PeftModel)
    weights, updates = load_file(base.path / "model.safetensors"), load_file(tmp_path / "adapter_model.safetensors")
    adapted = 0
    for name, weight in merged.state_dict().items():
        update = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        if update.format("A") in updates:
            adapted += 1
            delta = (updates[update.format("B")] @ updates[update.format("A")]) * (8 / 4)
            assert torch.equal(weight, weights[name] + delta)
        else:
            assert torch.equal(weight, weights[name])
    assert adapted == 14


def test_training_on_an_adapter_quantizes_the_merged_weights(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = ModelFolder("base", folder_of("llama"))
    first = saved(perturbed(make_trainable(quantized(base.path), QLORA, seed=0)), tmp_path / "one", base, NF4)
    model = open_model(first, FP32, merged=True, quantization=INT8)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
    merged = logits(open_model(first, FP32, merged=True))
    assert float((logits(model) - merged).norm() / merged.norm()) < 0.1
    second = saved(perturbed(make_trainable(model, QLORA, seed=3), seed=4), tmp_path / "two", first, INT8)
    # Merging and quantizing again gives the same weights.
    assert torch.equal(logits(open_model(second, FP32)), logits(model))


# --- unsupported machines ---


def test_missing_bitsandbytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with raises(RecipeError, "missing-package", ".[qlora]"):
        require_quantization(NF4, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("error", [OSError("libcudart.so: cannot open"), RuntimeError(""), NotImplementedError("mps")])
def test_platform_without_bitsandbytes_support_is_refused(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(name: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", fails)
    with raises(RecipeError, "quantization-unsupported", "nf4", "method: lora"):
        require_quantization(NF4, torch.device("cpu"), torch.float32)


def test_incorrect_quantized_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = importlib.import_module("bitsandbytes.nn")
    monkeypatch.setattr(layers.Linear4bit, "forward", lambda self, x: x.flip(1) * 0.01)
    with raises(RecipeError, "quantization-unsupported"):
        require_quantization(NF4, torch.device("cpu"), torch.float32)


@BOTH
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_quantization_works_on_this_machine(quantization: Quantization, compute: torch.dtype) -> None:
    require_quantization(quantization, torch.device("cpu"), compute)


@pytest.mark.parametrize(
    ("has_bf16", "setting", "expected"), [(True, "auto", "bf16"), (False, "auto", "fp16"), (False, "fp32", "fp32")]
)
def test_quantized_model_computes_in_fp16_on_a_gpu_without_bf16(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, setting: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert choose_compute(setting, quantized=True).precision == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_compute("auto", quantized=True).precision == "fp32"
