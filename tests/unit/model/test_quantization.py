"""QLoRA and LoRA in 8 bits: what is quantized, what stays whole, and that a merge goes back to the base as it was."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.support.opened import Opened
from transformers import AutoModelForCausalLM

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import write_json
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.model.adapters import count_parameters, make_trainable, open_model, save_model, trained_parameters
from tunesmith.model.load import ComputeConfig, choose_compute, load_base
from tunesmith.model.lora import use_compute_dtype
from tunesmith.model.quantization import bitsandbytes_config, disable_weight_repacking, require_quantization
from tunesmith.recipe.tuning import QloraTuning, Quantization

pytest.importorskip("bitsandbytes")
# What a layer of bitsandbytes does to its weights depends on the processor.
pytestmark = pytest.mark.usefixtures("processor")

IDS = torch.arange(5, 45).reshape(2, 20)
FP32, BF16 = (ComputeConfig(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16))
NF4 = Quantization(bits=4)
INT8 = Quantization(bits=8)
QLORA = QloraTuning(method="qlora", rank=4, alpha=8)
BOTH = pytest.mark.parametrize("quantization", [NF4, INT8], ids=str)


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
        return found


def quantized(folder: Path, quantization: Quantization = NF4, compute: ComputeConfig = FP32) -> Any:
    return load_base(ModelFolder("x", folder), compute, quantization=quantization).eval()


def moved(model: Any, seed: int = 1) -> Any:
    """Return a model whose trained weights have moved."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in trained_parameters(model):
            weight += 0.05 * torch.randn(weight.shape, generator=drawn)
    return model


def saved(model: Any, folder: Path, base: ModelFolder, quantization: Quantization | None) -> ModelFolder:
    """Save an adapter with the part of its card that says how the base was kept."""
    save_model(model, folder, base=base.reference)
    write_json(folder / CARD, {"quantization": quantization.model_dump() if quantization else None})
    return ModelFolder("tuned", folder, base)


# --- what is quantized ---


@BOTH
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_linear_layers_are_quantized_and_nothing_else(
    folder_of: Callable[[str], Path], opened: Opened, kind: str, quantization: Quantization
) -> None:
    model, whole = quantized(folder_of(kind), quantization), opened(kind)
    types = {type(module).__name__ for _, module in model.named_modules()}
    assert {"Linear4bit" if quantization.bits == 4 else "Linear8bitLt"} <= types
    for get in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(model, get)().weight, getattr(whole, get)().weight)
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert tied == (kind == "gpt2")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    off = float((logits(model) - logits(whole)).norm() / logits(whole).norm())
    assert 0 < off < 0.3
    assert count_parameters(model)[1] == count_parameters(whole)[1]


def test_fewer_bits_take_less_memory_and_are_further_off(folder_of: Callable[[str], Path], opened: Opened) -> None:
    models = [quantized(folder_of("llama"), one) for one in (NF4, INT8)] + [opened("llama")]
    sizes = [model.get_memory_footprint() for model in models]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    wanted = logits(models[-1])
    off = [float((logits(model) - wanted).norm()) for model in models]
    assert off[0] > off[1] > off[2] == 0


def test_codes_and_scales_of_four_bits_are_those_that_are_asked_for(folder_of: Callable[[str], Path]) -> None:
    for one in (NF4, Quantization(bits=4, quantization="fp4"), Quantization(bits=4, double_quantization=False)):
        state = quantized(folder_of("llama"), one).model.layers[0].mlp.up_proj.weight.quant_state
        assert (state.quant_type, state.nested) == (one.code, one.is_double)


@BOTH
def test_a_token_depends_on_no_other_row_and_on_nothing_after_it(
    folder_of: Callable[[str], Path], quantization: Quantization
) -> None:
    model = quantized(folder_of("llama"), quantization)
    with torch.no_grad():  # outliers in some tokens' columns, which LLM.int8() would look for in the whole batch
        for layer in model.model.layers:
            layer.input_layernorm.weight[:8] *= 4
    together = logits(model)
    torch.testing.assert_close(logits(model, IDS[:1]), together[:1])
    torch.testing.assert_close(logits(model, IDS[:1, :7]), together[:1, :7])


@pytest.mark.parametrize("code", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [16, 32, 64, 96, 100])
def test_blocks_of_scales_are_read_across_the_ends_of_rows(width: int, code: str) -> None:
    functional = importlib.import_module("bitsandbytes.functional")
    require_quantization(NF4, torch.device("cpu"), torch.float32)
    weight = torch.randn(20, width, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=code)
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten().long()
    scales = state.absmax.repeat_interleave(64)[: weight.numel()]
    for dtype in (torch.float32, torch.bfloat16):
        state.dtype = dtype
        found = functional.dequantize_4bit(packed, state)
        torch.testing.assert_close(found, (state.code[codes] * scales).view(weight.shape).to(dtype))


# --- trained ---


@BOTH
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_masters_are_trained_in_full_precision(
    folder_of: Callable[[str], Path], quantization: Quantization, compute: ComputeConfig
) -> None:
    model = make_trainable(quantized(folder_of("llama"), quantization, compute), QLORA, seed=0)
    assert model.dtype == compute.dtype
    trained = dict(trained_parameters(model))
    assert len(trained) == 28
    moved(model)(input_ids=IDS, labels=IDS).loss.backward()
    assert all(weight.dtype == torch.float32 == weight.grad.dtype for weight in trained.values())
    assert all(weight.grad.abs().sum() > 0 for weight in trained.values())


@BOTH
def test_the_forward_pass_in_bf16_is_ours_and_as_near_as_peft_s(
    folder_of: Callable[[str], Path], quantization: Quantization
) -> None:
    def adapted(compute: ComputeConfig) -> Any:
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
        made = moved(get_peft_model(quantized(folder_of("llama"), quantization, compute), config))
        return made.eval()

    theirs, mine, exact = adapted(BF16), adapted(BF16), adapted(FP32)
    use_compute_dtype(mine)
    assert sum("forward" in vars(module) for module in mine.modules()) == 14
    use_compute_dtype(exact)  # takes the layers, and leaves what is computed in fp32 to peft
    wanted, base = logits(exact), logits(quantized(folder_of("llama"), quantization))
    off, theirs_off = (float((logits(one).float() - wanted).norm()) for one in (mine, theirs))
    assert off < 1.5 * theirs_off
    assert float((wanted - base).norm()) > 2 * off
    assert logits(mine).dtype == torch.bfloat16


def test_dora_beside_quantized_weights_is_left_to_peft(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    tuning = QloraTuning(method="qlora", rank=4, alpha=8, dora=True)
    model = moved(make_trainable(quantized(folder_of("llama"), NF4, BF16), tuning, seed=0))
    assert not any("forward" in vars(module) for module in model.modules())
    base = ModelFolder("base", folder_of("llama"))
    assert torch.equal(logits(open_model(saved(model, tmp_path, base, NF4), BF16)), logits(model))


# --- saved, opened and merged ---


@BOTH
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_is_opened_on_weights_kept_as_in_training(
    folder_of: Callable[[str], Path], opened: Opened, tmp_path: Path, kind: str, quantization: Quantization
) -> None:
    model = moved(make_trainable(quantized(folder_of(kind), quantization), QLORA, seed=0))
    tuned = saved(model, tmp_path, ModelFolder("base", folder_of(kind)), quantization)
    wanted = logits(model)
    assert torch.equal(logits(open_model(tuned, FP32)), wanted)
    plain = AutoModelForCausalLM.from_pretrained(
        folder_of(kind), dtype=torch.float32, quantization_config=bitsandbytes_config(quantization, torch.float32)
    )
    disable_weight_repacking(plain)  # repacked weights have scales in bf16
    assert torch.equal(logits(PeftModel.from_pretrained(plain, str(tmp_path))), wanted)
    assert not torch.equal(logits(PeftModel.from_pretrained(opened(kind), str(tmp_path))), wanted)


@BOTH
def test_a_merge_goes_back_to_the_weights_of_the_base(
    folder_of: Callable[[str], Path], tmp_path: Path, quantization: Quantization
) -> None:
    base = ModelFolder("base", folder_of("llama"))
    model = moved(make_trainable(quantized(base.path, quantization), QLORA, seed=0))
    tuned = saved(model, tmp_path, base, quantization)
    merged = open_model(tuned, FP32, merged=True)
    assert not isinstance(merged, PeftModel)
    weights, updates = load_file(base.path / "model.safetensors"), load_file(tmp_path / "adapter_model.safetensors")
    adapted = 0
    for name, weight in merged.state_dict().items():
        update = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        if update.format("A") in updates:
            adapted += 1
            change = (updates[update.format("B")] @ updates[update.format("A")]) * (8 / 4)
            assert torch.equal(weight, weights[name] + change)
        else:
            assert torch.equal(weight, weights[name])
    assert adapted == 14


def test_training_on_top_of_an_adapter_quantizes_the_merged_weights(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = ModelFolder("base", folder_of("llama"))
    one = saved(moved(make_trainable(quantized(base.path), QLORA, seed=0)), tmp_path / "one", base, NF4)
    started = open_model(one, FP32, merged=True, quantization=INT8)
    assert type(started.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
    whole = logits(open_model(one, FP32, merged=True))
    assert float((logits(started) - whole).norm() / whole.norm()) < 0.1
    two = saved(moved(make_trainable(started, QLORA, seed=3), seed=4), tmp_path / "two", one, INT8)
    # Saved and quantized once more: the same bytes lead to the same weights.
    assert torch.equal(logits(open_model(two, FP32)), logits(started))


# --- where it cannot be had ---


def test_a_machine_without_bitsandbytes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="not installed") as caught:
        require_quantization(NF4, torch.device("cpu"), torch.float32)
    assert ".[qlora]" in str(caught.value.hint)


@pytest.mark.parametrize("error", [OSError("libcudart.so: cannot open"), RuntimeError(""), NotImplementedError("mps")])
def test_a_platform_that_bitsandbytes_does_not_support_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(name: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(RecipeError, match="cannot multiply nf4 weights here") as caught:
        require_quantization(NF4, torch.device("cpu"), torch.float32)
    assert "method: lora" in str(caught.value.hint)


def test_a_machine_that_multiplies_wrongly_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = importlib.import_module("bitsandbytes.nn")
    monkeypatch.setattr(layers.Linear4bit, "forward", lambda self, x: x.flip(1) * 0.01)
    with pytest.raises(RecipeError, match="wrongly"):
        require_quantization(NF4, torch.device("cpu"), torch.float32)


@BOTH
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_this_machine_has_it(quantization: Quantization, compute: torch.dtype) -> None:
    require_quantization(quantization, torch.device("cpu"), compute)


@pytest.mark.parametrize(
    ("has_bf16", "asked", "expected"), [(True, "auto", "bf16"), (False, "auto", "fp16"), (False, "fp32", "fp32")]
)
def test_on_a_gpu_without_bf16_quantized_weights_are_multiplied_in_fp16(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, asked: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert choose_compute(asked, quantized=True).precision == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_compute("auto", quantized=True).precision == "fp32"
