"""Memory estimated from the headers of weight files, compared with the counts of torch and peft on the real model."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import save_model, save_seq2seq

from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.shapes import Shapes
from tunesmith.estimate.activations import MicroBatchShape
from tunesmith.estimate.memory import (
    ONEDNN_CACHE_GIB,
    MemoryEstimate,
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
    """Return the numbers of parameters and of trained parameters, counted by torch and peft."""
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


def test_frozen_modules_have_neither_gradients_nor_optimizer_state(folders: dict[str, Path]) -> None:
    shapes = shapes_of(folders["llama"])
    whole = estimate(shapes, method="full")
    part = estimate(shapes, method="full", freeze=["embed_tokens", "layers.0"])
    trained = part.trainable_parameters
    assert trained < whole.trainable_parameters - 320 * 32
    assert (part.gradients, part.optimizer) == pytest.approx((trained * 4 / GIB, trained * 8 / GIB))
    assert part.weights == whole.weights


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_as_torch_counts_them(folders: dict[str, Path], kind: str) -> None:
    shapes = shapes_of(folders[kind])
    assert (shapes.hidden, shapes.vocabulary) == (32, 320)
    size, _ = counted(folders[kind])
    assert shapes.parameters == size
    full = estimate(shapes)
    assert full.trainable_parameters == size
    # Master weights, gradients and two moments in fp32, and the gradient of the embedding a second time.
    assert full.weights + full.gradients + full.optimizer == pytest.approx((size * 16 + 320 * 32 * 4) / GIB)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_parameters_are_counted_as_peft_counts_them(folders: dict[str, Path], kind: str) -> None:
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
def test_lora_parameters_of_named_target_modules(folders: dict[str, Path], kind: str, target: list[str]) -> None:
    found = estimate(shapes_of(folders[kind]), method="lora", rank=4, target=target)
    assert found.trainable_parameters == (0 if target == ["proj"] else counted(folders[kind], target)[1])


@pytest.mark.parametrize("kind", ["t5", "flan-t5", "mt5", "bart"])
def test_encoder_decoder_parameters_are_counted_as_torch_counts_them(tmp_path: Path, kind: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSeq2SeqLM

    shapes = shapes_of(save_seq2seq(tmp_path / "m", kind))
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m")
    assert (shapes.hidden, shapes.vocabulary) == (32, 320)
    buffers = 320 if kind == "bart" else 0  # the bias of the output layer: not a parameter, but in the file
    assert shapes.parameters == sum(weight.numel() for weight in model.parameters()) + buffers
    target = ["q_proj", "v_proj"] if kind == "bart" else ["q", "v"]
    for wanted in (target, "all-linear"):
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=wanted, task_type="SEQ_2_SEQ_LM"))
        trained = adapted.get_nb_trainable_parameters()[0]
        assert estimate(shapes, method="lora", rank=4, target=wanted).trainable_parameters == trained
        model = adapted.unload()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dora_magnitudes_are_counted(folders: dict[str, Path], kind: str) -> None:
    found = estimate(shapes_of(folders[kind]), method="lora", rank=4, dora=True)
    assert found.trainable_parameters == counted(folders[kind], "all-linear", use_dora=True)[1]


@pytest.mark.parametrize("quantization", [{"bits": 4}, {"bits": 4, "double_quantization": False}, {"bits": 8}])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_quantized_weights_are_counted_with_their_scales(
    folders: dict[str, Path], kind: str, quantization: dict[str, Any]
) -> None:
    pytest.importorskip("bitsandbytes")
    import torch

    from tunesmith.fetch.reference import ModelFolder
    from tunesmith.model.load import ComputeConfig, load_base
    from tunesmith.recipe.tuning import Quantization

    def stored_bytes(module: torch.nn.Module) -> int:
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
    adapters = found.trainable_parameters * (4 + 2 * 2)  # fp32 masters, and two bf16 copies, one of them scaled
    # The scales of small layers are rounded up to whole blocks; in models of real size this is negligible.
    assert found.weights * GIB - adapters == pytest.approx(rest + sum(map(stored_bytes, linear)), rel=0.02)


def test_memory_grows_with_every_size(folders: dict[str, Path]) -> None:
    shapes = shapes_of(folders["llama"])
    lora = recipe(method="lora", rank=4)

    def total(settings: Recipe = lora, compute: int = 2, **changes: Any) -> float:
        size = {"tokens": 512, "width": 128, "trained": 64, **changes}
        return estimate_memory(settings, shapes, MicroBatchShape(**size), compute_bytes=compute).total

    larger = [
        total(tokens=640),
        total(trained=512),
        total(recipe()),
        total(masked=True),
        total(by_row=True),
    ]
    larger += [total(recipe(method="lora", rank=5)), total(recipe(method="lora", rank=4, dropout=0.1))]
    assert total() < min(larger)
    found = estimate_memory(lora, shapes, MicroBatchShape(512, 128, 64), compute_bytes=2)
    purposes = (
        found.weights,
        found.gradients,
        found.optimizer,
        found.activations,
        found.logits,
        found.fragmentation,
        found.libraries,
    )
    assert total() == pytest.approx(sum(purposes))
    assert estimate_memory(lora, shapes, MicroBatchShape(512, 128, 64), compute_bytes=2, on_gpu=True).libraries == 0
    wide = estimate_memory(lora, shapes, MicroBatchShape(512, 128, 64), compute_bytes=4)
    assert (wide.weights > found.weights, wide.activations > found.activations) == (True, True)
    assert found.libraries - wide.libraries == pytest.approx(ONEDNN_CACHE_GIB), "oneDNN compiles no products in fp32"


def test_embeddings_of_new_tokens_are_trained(folders: dict[str, Path]) -> None:
    for kind, layers in (("llama", 2), ("gemma2", 1)):  # an untied and a tied output layer
        shapes = shapes_of(folders[kind])
        lora = recipe(method="lora", rank=4)
        none, two = (
            estimate_memory(lora, shapes, MicroBatchShape(0, 0, 0), compute_bytes=4, new_tokens=new) for new in (0, 2)
        )
        assert two.trainable_parameters - none.trainable_parameters == 2 * 32 * layers


def test_attention_scores_are_saved_if_attention_is_not_fused(folders: dict[str, Path]) -> None:
    shapes, micro_batch = shapes_of(folders["llama"]), MicroBatchShape(1024, 512, 8)
    fused, eager = (
        estimate_memory(recipe(method="lora", rank=4).model_copy(update={"model": Model(base="x", attention=name)}),
                  shapes, micro_batch, compute_bytes=4).activations * GIB
        for name in ("auto", "eager")
    )  # fmt: skip
    scores = 2 * 4 * 1024 * 512 * 4  # layers, heads, tokens, keys per token, fp32
    assert eager - fused > scores


@pytest.mark.parametrize("tuning", [{"method": "full"}, {"method": "lora", "rank": 4}, {"method": "qlora", "rank": 4}])
def test_sharded_layers_are_divided_by_the_number_of_shards(folders: dict[str, Path], tuning: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    shapes, settings = shapes_of(folders["llama"]), recipe(**tuning)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters() if weight.ndim > 1)
    whole, sharded = (
        estimate_memory(settings, shapes, MicroBatchShape(64, 64, 8), compute_bytes=4, shards=shards)
        for shards in (1, 4)
    )
    size = 0.5 if tuning["method"] == "qlora" else 4
    elsewhere = 3 / 4 * 2 * layer * size / GIB  # three quarters of the two layers
    gathered = 2 * layer * size / GIB
    assert whole.weights - sharded.weights == pytest.approx(elsewhere - gathered)
    full = tuning["method"] == "full"
    assert whole.gradients - sharded.gradients == pytest.approx(elsewhere - gathered if full else 0, abs=1e-12)
    assert whole.optimizer - sharded.optimizer == pytest.approx(2 * elsewhere if full else 0, abs=1e-12)
    assert (whole.activations, whole.logits) == (sharded.activations, sharded.logits)
    file = shapes.parameters * shapes.stored_bytes / GIB
    assert sharded.loading == pytest.approx(whole.loading + (file - elsewhere if full else 0)), "the file and a shard"


@pytest.mark.parametrize("tuning", [{"method": "full"}, {"method": "lora", "rank": 4}])
def test_offloaded_layers_move_from_the_gpu_to_cpu_memory(folders: dict[str, Path], tuning: dict[str, Any]) -> None:
    shapes, settings = shapes_of(folders["llama"]), recipe(**tuning)
    offload = settings.model_copy(update={"launch": settings.launch.model_copy(update={"offload": True})})
    layers, _ = layer_parameter_counts(shapes)

    def needed(settings: Recipe, **options: Any) -> MemoryEstimate:
        return estimate_memory(settings, shapes, MicroBatchShape(64, 64, 8), compute_bytes=4, **options)

    sharded, offloaded = (needed(one, on_gpu=True, shards=4) for one in (settings, offload))
    shard = layers / 4 * (16 if tuning["method"] == "full" else 4) / GIB
    assert offloaded.offloaded == pytest.approx(shard), "the sizes of all shards are powers of two"
    assert sharded.total - offloaded.total == pytest.approx(shard)
    assert sharded.offloaded == 0
    three = needed(offload, on_gpu=True, shards=3)
    assert three.offloaded > layers / 3 * (16 if tuning["method"] == "full" else 4) / GIB, (
        "pinned blocks are rounded up"
    )
    assert needed(offload, shards=4) == needed(settings, shards=4), "a CPU offloads nothing"
    assert needed(offload, on_gpu=True) == needed(settings, on_gpu=True), "a single rank offloads nothing"
