"""Rows of new tokens are initialized to the mean, trained, saved with the adapter, and loaded by plain peft."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.support.errors import raises
from tests.support.tiny import save_plain_model, save_seq2seq
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.core.files import write_json
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.model.adapters import attach_adapter, open_model, restore_weights, save_model
from tunesmith.model.load import ComputeConfig
from tunesmith.model.trainable import make_trainable
from tunesmith.model.trainable import trained_parameters as trained
from tunesmith.recipe.model import Model
from tunesmith.recipe.tuning import FullTuning, LoraTuning, QloraTuning, Quantization
from tunesmith.tasks.model_tokenizer import load_tokenizer

FP32, BF16 = (ComputeConfig(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16))
CHATML_ADDED = Model(base="org/base", chat_markup="chatml")
LORA = LoraTuning(method="lora", rank=4, alpha=8)
WEIGHTS = "adapter_model.safetensors"
# Tied and untied output layers, with and without spare rows for the new tokens.
BASES = [("llama", 0), ("llama", 8), ("gpt2", 0), ("gemma3_text", 8)]
EACH = pytest.mark.parametrize(("kind", "spare"), BASES)

MakeBase = Callable[[str, int], ModelFolder]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> MakeBase:
    made: dict[tuple[str, int], ModelFolder] = {}
    root = tmp_path_factory.mktemp("plain")

    def folder(kind: str, spare: int) -> ModelFolder:
        if (kind, spare) not in made:
            made[kind, spare] = ModelFolder(
                "org/base", save_plain_model(root / f"{kind}-{spare}", kind, spare_rows=spare)
            )
        return made[kind, spare]

    return folder


def opened(folder: ModelFolder, compute: ComputeConfig = FP32, **settings: Any) -> Any:
    return open_model(folder, compute, new_rows=load_tokenizer(folder, CHATML_ADDED).new_rows, **settings).eval()


def adapted(folder: ModelFolder, tuning: Any = LORA, compute: ComputeConfig = FP32, **settings: Any) -> Any:
    """Return a trainable model with random changes to its trained weights."""
    new = load_tokenizer(folder, CHATML_ADDED).new_ids
    model = make_trainable(opened(folder, compute, **settings), tuning, seed=0, new_tokens=new).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in trained(model):
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


def ids_of(folder: ModelFolder) -> torch.Tensor:
    tokenizer = load_tokenizer(folder, CHATML_ADDED)
    return torch.tensor(
        [tokenizer.encode_trusted("<|im_start|>user\nSay one and cat.<|im_end|>\n<|im_start|>assistant\n")]
    )


def logits(model: Any, folder: ModelFolder) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=ids_of(folder)).logits
        return result


def saved(model: Any, folder: Path, base: ModelFolder) -> ModelFolder:
    save_model(model, folder, base=base.reference)
    load_tokenizer(base, CHATML_ADDED).hf_tokenizer.save_pretrained(folder)
    write_json(folder / CARD, {"chat_markup": "chatml"})
    return ModelFolder("tuned", folder, base)


@EACH
def test_new_rows_are_initialized_to_the_mean(base: MakeBase, kind: str, spare: int) -> None:
    folder = base(kind, spare)
    new = list(load_tokenizer(folder, CHATML_ADDED).new_ids)
    plain = AutoModelForCausalLM.from_pretrained(folder.path)
    model = opened(folder)
    known = min(new)
    assert model.config.vocab_size == max(known + 2, known + spare)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, extended = (getattr(loaded, get)().weight for loaded in (plain, model))
        assert torch.equal(extended[:known], old[:known])
        torch.testing.assert_close(extended[new], old[:known].mean(0, keepdim=True).expand(2, -1))
    # So no new token is likelier than all known ones.
    assert logits(model, folder).argmax(-1).max() < known


@EACH
def test_row_of_a_token_with_a_text_is_the_mean_of_its_tokens(base: MakeBase, kind: str, spare: int) -> None:
    folder = base(kind, spare)
    tokenizer = load_tokenizer(folder, Model(base="org/base", add_tokens={"<sql>": "Say one", "</sql>": None}))
    sql, end = (tokenizer.encode_untrusted(token)[0] for token in ("<sql>", "</sql>"))
    sources = load_tokenizer(folder).encode_untrusted("Say one")
    assert len(sources) > 1
    plain = AutoModelForCausalLM.from_pretrained(folder.path)
    model = open_model(folder, FP32, new_rows=tokenizer.new_rows)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, extended = (getattr(loaded, get)().weight for loaded in (plain, model))
        torch.testing.assert_close(extended[sql], old[sources].mean(0))
        torch.testing.assert_close(extended[end], old[: min(tokenizer.new_ids)].mean(0))


@pytest.mark.parametrize("kind", ["t5", "flan-t5", "bart", "marian"])
def test_resized_encoder_decoder_keeps_its_other_rows(tmp_path: Path, kind: str) -> None:
    # transformers takes the output layer of every T5 for tied, and would overwrite that of FLAN-T5.
    folder = ModelFolder("org/base", save_seq2seq(tmp_path, kind))
    tokens = [f"<t{i}>" for i in range(300)]
    tokenizer = load_tokenizer(folder, Model(base="org/base", add_tokens=tuple(tokens)))
    plain = open_model(folder, FP32)
    model = open_model(folder, FP32, new_rows=tokenizer.new_rows)
    known = min(tokenizer.new_ids)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, extended = (getattr(loaded, get)().weight for loaded in (plain, model))
        assert len(extended) == known + 300
        assert torch.equal(extended[:known], old[:known])
    tied = [loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight for loaded in (plain, model)]
    assert tied == [kind != "flan-t5"] * 2
    with raises(RecipeError, "untrainable-rows", "method: full"):
        make_trainable(model, LORA, seed=0, new_tokens=tokenizer.new_ids)


@EACH
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_only_adapters_and_new_rows_are_trained(base: MakeBase, kind: str, spare: int, compute: ComputeConfig) -> None:
    folder = base(kind, spare)
    model = adapted(folder, compute=compute)
    rows = {name: weight for name, weight in trained(model) if "lora_" not in name}
    assert [tuple(weight.shape) for weight in rows.values()] == [(2, 32)] * (1 if kind != "llama" else 2)
    assert all(weight.dtype == torch.float32 for weight in rows.values())
    ids = ids_of(folder)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in rows.values())


@EACH
def test_new_rows_are_saved_with_the_adapter_and_load_in_plain_peft(
    base: MakeBase, tmp_path: Path, kind: str, spare: int
) -> None:
    folder = base(kind, spare)
    model = adapted(folder)
    tuned = saved(model, tmp_path, folder)
    expected = logits(model, folder)
    stored = {name: weight for name, weight in load_file(tmp_path / WEIGHTS).items() if "lora_" not in name}
    assert all(tuple(weight.shape) == (2, 32) for weight in stored.values())
    assert torch.equal(logits(open_model(tuned, FP32).eval(), folder), expected)

    plain = AutoModelForCausalLM.from_pretrained(folder.path)
    tokens = len(AutoTokenizer.from_pretrained(tmp_path))
    if tokens > plain.config.vocab_size:
        plain.resize_token_embeddings(tokens)
    assert torch.equal(logits(PeftModel.from_pretrained(plain, str(tmp_path)).eval(), folder), expected)

    restored = make_trainable(
        opened(folder), LORA, seed=9, new_tokens=load_tokenizer(folder, CHATML_ADDED).new_ids
    ).eval()
    restore_weights(restored, tmp_path)
    assert torch.equal(logits(restored, folder), expected)

    merged = open_model(tuned, FP32, merged=True).eval()
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(logits(merged, folder), expected, rtol=1e-4, atol=1e-4)
    tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert tied == (kind != "llama")


@pytest.mark.parametrize("how", ["restore", "attach"])
def test_adapter_without_its_new_rows_is_refused(base: MakeBase, tmp_path: Path, how: str) -> None:
    folder = base("llama", 0)
    tuned = saved(adapted(folder), tmp_path, folder)
    weights = load_file(tmp_path / WEIGHTS)
    del weights[next(name for name in weights if "trainable_tokens" in name)]
    save_file(weights, tmp_path / WEIGHTS)
    model = adapted(folder) if how == "restore" else opened(folder)
    with raises(DamagedFile, "weights-mismatch"):
        restore_weights(model, tuned.path) if how == "restore" else attach_adapter(model, tuned.path)


def test_adapter_that_changes_only_new_rows_is_attached(base: MakeBase, tmp_path: Path) -> None:
    folder = base("gpt2", 0)
    model = adapted(folder)
    with torch.no_grad():
        for name, weight in trained(model):
            if "lora_B" in name:
                weight.zero_()
    tuned = saved(model, tmp_path, folder)
    assert torch.equal(logits(open_model(tuned, FP32).eval(), folder), logits(model, folder))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_full_tuning_saves_the_resized_model(base: MakeBase, tmp_path: Path, kind: str) -> None:
    folder = base(kind, 0)
    model = adapted(folder, FullTuning(method="full"))
    saved(model, tmp_path, folder)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert plain.config.vocab_size == max(load_tokenizer(folder, CHATML_ADDED).new_ids) + 1
    assert torch.equal(logits(plain, folder), logits(model, folder))
    restored = make_trainable(opened(folder), FullTuning(method="full"), seed=0).eval()
    restore_weights(restored, tmp_path)
    assert torch.equal(logits(restored, folder), logits(model, folder))
    tuned = ModelFolder("tuned", tmp_path)
    assert load_tokenizer(tuned).digest == load_tokenizer(folder, CHATML_ADDED).digest


@pytest.mark.parametrize("bits", [4, 8])
def test_new_rows_are_trained_with_quantized_weights(base: MakeBase, tmp_path: Path, bits: Any) -> None:
    pytest.importorskip("bitsandbytes")
    folder, quantization = base("llama", 0), Quantization(bits=bits)
    model = adapted(folder, QloraTuning(method="qlora", rank=4, bits=bits), quantization=quantization)
    tuned = saved(model, tmp_path, folder)
    write_json(tmp_path / CARD, {"chat_markup": "chatml", "quantization": quantization.model_dump()})
    assert torch.equal(logits(open_model(tuned, FP32).eval(), folder), logits(model, folder))


def test_new_tokens_with_an_output_bias_are_refused(base: MakeBase) -> None:
    folder = base("phi", 0)
    with raises(RecipeError, "untrainable-rows", "method: full"):
        adapted(folder)
    adapted(folder, FullTuning(method="full"))


def test_output_layer_that_is_untied_despite_its_configuration_is_refused(base: MakeBase) -> None:
    model = opened(base("llama", 0))
    model.config.tie_word_embeddings = True  # as transformers leaves it if the weights say otherwise
    with raises(RecipeError, "untrainable-rows"):
        make_trainable(model, LORA, seed=0, new_tokens=load_tokenizer(base("llama", 0), CHATML_ADDED).new_ids)
