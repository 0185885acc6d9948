"""The memory of mixtures of experts, compared with torch, peft and bitsandbytes on tiny random models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.opened import Opened
from tests.unit.estimate.test_memory import estimate, recipe

from tunesmith.architecture.families import shapes_of
from tunesmith.estimate.activations import MicroBatchShape, SavedActivations
from tunesmith.estimate.memory import layer_parameter_counts, weights_bytes
from tunesmith.fetch.reference import ModelFolder
from tunesmith.model.experts import expert_weights
from tunesmith.model.load import ComputeConfig, load_base
from tunesmith.model.trainable import count_parameters, make_trainable
from tunesmith.recipe.tuning import LoraTuning, Quantization

# Files of the first two hold each expert's matrices, those of the last three one parameter for all experts.
MIXTURES = pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "phimoe", "gpt_oss", "llama4_text"])
LORA: dict[str, Any] = {"method": "lora", "rank": 4, "alpha": 8}
FolderOf = Callable[[str], Path]


@MIXTURES
@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "down_proj"]], ids=str)
def test_adapters_are_counted_as_peft_counts_them(folder_of: FolderOf, opened: Opened, kind: str, target: Any) -> None:
    tuning = {**LORA, "target": target}
    if target != "all-linear" and kind not in ("qwen2_moe", "llama4_text"):
        tuning["target"] = ["q_proj"]  # the others have no shared experts with a `down_proj`
    adapted = make_trainable(opened(kind), LoraTuning.model_validate(tuning), seed=0)
    assert estimate(shapes_of(folder_of(kind)), **tuning).trainable_parameters == count_parameters(adapted)[0]


@MIXTURES
def test_all_matrices_of_layers_are_counted_as_torch_counts_them(
    folder_of: FolderOf, opened: Opened, kind: str
) -> None:
    model, shapes = opened(kind), shapes_of(folder_of(kind))
    assert shapes.parameters == sum(weight.numel() for weight in model.parameters())
    expected = {name: list(weight.shape) for name, weight in expert_weights(model)}
    found = [linear for _, linear in shapes.linear() if linear.experts > 1]
    assert len(found) == len(expected)
    assert sum(linear.weights for linear in found) == sum(weight.numel() for _, weight in expert_weights(model))
    assert {linear.active for linear in found} == {1 if kind == "llama4_text" else 2}
    layers = [(name, w) for name, w in model.named_parameters() if ".layers." in name and w.ndim > 1]
    routers = sum(w.numel() for name, w in layers if any(part in name for part in ("router", "mlp.gate.")))
    biases = sum(w.numel() for name, w in layers if "bias" in name)
    in_layers = sum(w.numel() for _, w in layers) - biases
    assert layer_parameter_counts(shapes)[0] in (in_layers, in_layers - routers)


@MIXTURES
def test_experts_are_not_quantized(folder_of: FolderOf, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    compute = ComputeConfig(torch.device("cpu"), torch.bfloat16)
    model = load_base(ModelFolder("x", folder_of(kind)), compute, quantization=Quantization(double_quantization=False))
    states = (getattr(weight, "quant_state", None) for weight in model.parameters())
    size = sum(w.nbytes for w in model.parameters()) + sum(state.absmax.nbytes for state in states if state)
    shapes = shapes_of(folder_of(kind))
    estimated = weights_bytes(recipe(method="qlora", double_quantization=False), shapes, 2)
    assert estimated == pytest.approx(size, rel=0.01)


@MIXTURES
def test_the_updated_copies_of_experts_are_counted(folder_of: FolderOf, opened: Opened, kind: str) -> None:
    """peft computes W + B A for all experts of a layer, and the backward pass needs it."""
    adapted, saved = make_trainable(opened(kind), LoraTuning.model_validate(LORA), seed=0), {}
    own = {weight.untyped_storage().data_ptr() for weight in adapted.parameters()}
    sizes = {weight.numel() for _, weight in expert_weights(adapted)}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.numel() in sizes and tensor.ndim == 3:
            saved[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted(input_ids=torch.arange(5, 45).reshape(2, 20)).logits.sum()
    shapes = shapes_of(folder_of(kind))
    no_tokens = MicroBatchShape(0, 0, 0)
    estimated = SavedActivations(recipe(**LORA), shapes, 4).peak_bytes(no_tokens, 0.0)
    assert estimated == sum(size for _, size in saved.values())
    named = SavedActivations(recipe(**LORA, target=["q_proj"]), shapes, 4)
    assert named.peak_bytes(no_tokens, 0.0) == 0
