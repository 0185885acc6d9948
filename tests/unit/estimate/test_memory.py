"""What a run needs, from the headers of its files, against what the library counts in the model itself."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import save_model, save_seq2seq

from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.shapes import Shapes
from tunesmith.estimate.memory import (
    ONEDNN_CACHE_GIB,
    MemoryEstimate,
    MicroBatchShape,
    estimate_memory,
    layer_parameter_counts,
)
from tunesmith.recipe.schema import Model, Recipe

KINDS = ("llama", "gpt2", "gpt_neo", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi", "phi3", "granite")
GIB = 2**30


def recipe(**tuning: Any) -> Recipe:
    return Recipe.model_validate({
        "name": "x", "model": {"base": "org/model"},
        "data": {"task": "text", "text": "t", "source": {"file": "x.csv"}},
        "tuning": tuning or {"method": "full"}, "train": {"learning_rate": 1e-4},
        "evaluate": {"metrics": ["perplexity"], "primary": "perplexity"},
    })  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root / kind, kind) for kind in KINDS}


def counted(folder: Path, target: Any = None, **settings: Any) -> tuple[int, int]:
    """Return (weights, weights that are trained) as torch and peft count them."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    size = sum(weight.numel() for weight in model.parameters())
    if target is not None:
        config = LoraConfig(r=4, target_modules=target, task_type="CAUSAL_LM", **settings)
        return size, get_peft_model(model, config).get_nb_trainable_parameters()[0]
    return size, size


def estimate(shapes: Shapes, **tuning: Any) -> Any:
    return estimate_memory(recipe(**tuning), shapes, MicroBatchShape(0, 0, 0), compute_bytes=4)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_counted_as_the_libraries_count_them(folders: dict[str, Path], kind: str) -> None:
    shapes = shapes_of(folders[kind])
    assert (shapes.hidden, shapes.vocabulary) == (32, 320)
    size, _ = counted(folders[kind])
    assert shapes.parameters == size
    full = estimate(shapes)
    assert full.trainable_parameters == size
    # Masters, gradients and both moments in fp32, and the embedding's gradient once more.
    assert full.weights + full.gradients + full.optimizer == pytest.approx((size * 16 + 320 * 32 * 4) / GIB)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_counted_as_peft_counts_them(folders: dict[str, Path], kind: str) -> None:
    shapes = shapes_of(folders[kind])
    size, trained = counted(folders[kind], "all-linear")
    found = estimate(shapes, method="lora", rank=4)
    assert found.trainable_parameters == trained
    assert found.weights == pytest.approx((size + trained) * 4 / GIB)
    assert found.gradients + found.optimizer == pytest.approx(trained * 12 / GIB)


@pytest.mark.parametrize(
    ("kind", "target"),
    [("llama", ["q_proj", "v_proj"]), ("llama", ["self_attn.q_proj"]), ("llama", ["proj"]), ("gpt2", ["c_attn"]),
     ("llama", ["model.layers.0.mlp.up_proj"])],
)  # fmt: skip
def test_only_the_layers_that_are_named_count(folders: dict[str, Path], kind: str, target: list[str]) -> None:
    found = estimate(shapes_of(folders[kind]), method="lora", rank=4, target=target)
    assert found.trainable_parameters == (0 if target == ["proj"] else counted(folders[kind], target)[1])


@pytest.mark.parametrize("kind", ["t5", "flan-t5", "mt5", "bart"])
def test_encoder_and_decoder_are_counted_together(tmp_path: Path, kind: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSeq2SeqLM

    shapes = shapes_of(save_seq2seq(tmp_path / "m", kind))
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m")
    assert (shapes.hidden, shapes.vocabulary) == (32, 320)
    buffers = 320 if kind == "bart" else 0  # a bias of the output that is not trained, and saved all the same
    assert shapes.parameters == sum(weight.numel() for weight in model.parameters()) + buffers
    target = ["q_proj", "v_proj"] if kind == "bart" else ["q", "v"]
    for wanted in (target, "all-linear"):
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=wanted, task_type="SEQ_2_SEQ_LM"))
        trained = adapted.get_nb_trainable_parameters()[0]
        assert estimate(shapes, method="lora", rank=4, target=wanted).trainable_parameters == trained
        model = adapted.unload()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_lengths_of_dora_count(folders: dict[str, Path], kind: str) -> None:
    found = estimate(shapes_of(folders[kind]), method="lora", rank=4, dora=True)
    assert found.trainable_parameters == counted(folders[kind], "all-linear", use_dora=True)[1]


@pytest.mark.parametrize("quantization", [{"bits": 4}, {"bits": 4, "double_quantization": False}, {"bits": 8}])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_quantized_weights_count_as_they_are_kept(
    folders: dict[str, Path], kind: str, quantization: dict[str, Any]
) -> None:
    pytest.importorskip("bitsandbytes")
    import torch

    from tunesmith.fetch.reference import ModelFolder
    from tunesmith.model.load import ComputeConfig, load_base
    from tunesmith.recipe.schema import Quantization

    def kept(module: torch.nn.Module) -> int:
        state = getattr(module.weight, "quant_state", None)
        if state is not None:
            nested = state.state2.absmax.nbytes if state.nested else 0
            return int(module.weight.nbytes + state.absmax.nbytes + nested)
        scales = getattr(module.weight, "SCB", None)
        return int(module.weight.nbytes + (0 if scales is None else scales.nbytes))

    shapes, compute = shapes_of(folders[kind]), ComputeConfig(torch.device("cpu"), torch.bfloat16)
    model = load_base(ModelFolder("x", folders[kind]), compute, quantization=Quantization(**quantization))
    linear = [m for m in model.modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")]
    inside = {id(weight) for module in linear for name, weight in module.named_parameters() if name == "weight"}
    rest = sum(weight.nbytes for weight in model.parameters() if id(weight) not in inside)
    found = estimate_memory(
        recipe(method="qlora", rank=4, **quantization), shapes, MicroBatchShape(0, 0, 0), compute_bytes=2
    )
    adapters = found.trainable_parameters * (4 + 2 * 2)  # masters, and copies to compute with, one scaled
    # Small layers fill whole blocks of scales; in real ones that is nothing.
    assert found.weights * GIB - adapters == pytest.approx(rest + sum(map(kept, linear)), rel=0.02)


def test_more_of_anything_takes_more_memory(folders: dict[str, Path]) -> None:
    shapes = shapes_of(folders["llama"])
    lora = recipe(method="lora", rank=4)

    def total(one: Recipe = lora, compute: int = 2, **changes: Any) -> float:
        size = {"tokens": 512, "width": 128, "trained": 64, **changes}
        return estimate_memory(one, shapes, MicroBatchShape(**size), compute_bytes=compute).total

    more = [
        total(tokens=640),
        total(trained=512),
        total(recipe()),
        total(masked=True),
        total(by_row=True),
    ]
    more += [total(recipe(method="lora", rank=5)), total(recipe(method="lora", rank=4, dropout=0.1))]
    assert total() < min(more)
    found = estimate_memory(lora, shapes, MicroBatchShape(512, 128, 64), compute_bytes=2)
    parts = (
        found.weights,
        found.gradients,
        found.optimizer,
        found.activations,
        found.logits,
        found.fragmentation,
        found.libraries,
    )
    assert total() == pytest.approx(sum(parts))
    assert estimate_memory(lora, shapes, MicroBatchShape(512, 128, 64), compute_bytes=2, on_gpu=True).libraries == 0
    wide = estimate_memory(lora, shapes, MicroBatchShape(512, 128, 64), compute_bytes=4)
    assert (wide.weights > found.weights, wide.activations > found.activations) == (True, True)
    assert found.libraries - wide.libraries == pytest.approx(ONEDNN_CACHE_GIB), "fp32 compiles no products"


def test_rows_of_new_tokens_are_trained(folders: dict[str, Path]) -> None:
    for kind, layers in (("llama", 2), ("gemma2", 1)):  # an output layer of its own, and a tied one
        shapes = shapes_of(folders[kind])
        one = recipe(method="lora", rank=4)
        found = [estimate_memory(one, shapes, MicroBatchShape(0, 0, 0), compute_bytes=4, new_tokens=n) for n in (0, 2)]
        assert found[1].trainable_parameters - found[0].trainable_parameters == 2 * 32 * layers


def test_scores_are_kept_where_attention_is_not_fused(folders: dict[str, Path]) -> None:
    shapes, read = shapes_of(folders["llama"]), MicroBatchShape(1024, 512, 8)
    fused, eager = (
        estimate_memory(recipe(method="lora", rank=4).model_copy(update={"model": Model(base="x", attention=name)}),
                  shapes, read, compute_bytes=4).activations * GIB
        for name in ("auto", "eager")
    )  # fmt: skip
    scores = 2 * 4 * 1024 * 512 * 4  # layers, heads, tokens, seen tokens, fp32
    assert eager - fused > scores


@pytest.mark.parametrize("tuning", [{"method": "full"}, {"method": "lora", "rank": 4}, {"method": "qlora", "rank": 4}])
def test_parts_are_counted_as_they_are_divided(folders: dict[str, Path], tuning: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    shapes, one = shapes_of(folders["llama"]), recipe(**tuning)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters() if weight.ndim > 1)
    whole, parts = (estimate_memory(one, shapes, MicroBatchShape(64, 64, 8), compute_bytes=4, parts=n) for n in (1, 4))
    size = 0.5 if tuning["method"] == "qlora" else 4
    kept = 3 / 4 * 2 * layer * size / GIB  # of two layers three quarters are elsewhere; both are whole at some moment
    both = 2 * layer * size / GIB
    assert whole.weights - parts.weights == pytest.approx(kept - both)
    full = tuning["method"] == "full"
    assert whole.gradients - parts.gradients == pytest.approx(kept - both if full else 0, abs=1e-12)
    assert whole.optimizer - parts.optimizer == pytest.approx(2 * kept if full else 0, abs=1e-12)
    assert (whole.activations, whole.logits) == (parts.activations, parts.logits)
    stored = shapes.parameters * shapes.stored_bytes / GIB
    assert parts.loading == pytest.approx(whole.loading + (stored - kept if full else 0)), "a part, beside the file"


@pytest.mark.parametrize("tuning", [{"method": "full"}, {"method": "lora", "rank": 4}])
def test_parts_may_be_beside_the_gpu(folders: dict[str, Path], tuning: dict[str, Any]) -> None:
    shapes, one = shapes_of(folders["llama"]), recipe(**tuning)
    offload = one.model_copy(update={"launch": one.launch.model_copy(update={"offload": True})})
    divided, _ = layer_parameter_counts(shapes)

    def needed(asked: Recipe, **how: Any) -> MemoryEstimate:
        return estimate_memory(asked, shapes, MicroBatchShape(64, 64, 8), compute_bytes=4, **how)

    parts, beside = (needed(asked, on_gpu=True, parts=4) for asked in (one, offload))
    each = divided / 4 * (16 if tuning["method"] == "full" else 4) / GIB
    assert beside.offloaded == pytest.approx(each), "all of these have 2, 4, 8 ... bytes"
    assert parts.total - beside.total == pytest.approx(each), "what is there is not here"
    assert parts.offloaded == 0
    three = needed(offload, on_gpu=True, parts=3)
    assert three.offloaded > divided / 3 * (16 if tuning["method"] == "full" else 4) / GIB, "pinned in larger blocks"
    assert needed(offload, parts=4) == needed(one, parts=4), "a processor has no other place"
    assert needed(offload, on_gpu=True) == needed(one, on_gpu=True), "nor has what is whole"
