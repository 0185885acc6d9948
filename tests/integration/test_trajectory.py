"""The fast path on the real model has the losses of plain transformers and peft, without drift."""

import contextlib
from pathlib import Path

import pytest
import torch
from tests.support.tokens import dataset_of
from tests.support.trajectory import losses

from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.fetch.reference import ModelFolder
from tunesmith.kernels.fast_path import enable_fast_path
from tunesmith.kernels.packed_attention import has_packed_attention
from tunesmith.kernels.packing_check import packing_unsupported_reason
from tunesmith.model.adapters import open_model
from tunesmith.model.load import ComputeConfig
from tunesmith.model.lora import use_peft_forward
from tunesmith.model.trainable import make_trainable
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import ChatData
from tunesmith.recipe.tuning import LoraTuning
from tunesmith.tasks import task_for
from tunesmith.tasks.model_tokenizer import load_tokenizer

pytestmark = [pytest.mark.model, pytest.mark.slow]

FP32 = ComputeConfig(torch.device("cpu"), torch.float32)
STEPS = 6
QUESTIONS = [
    ("Name the capital of France.", "Paris."),
    ("What is two and two?", "It is four."),
    ("Write a sentence about a red fox that runs over a hill.", "A red fox runs over the hill before the sun is up."),
    ("Which month comes after May?", "June comes after May."),
]


@pytest.fixture(scope="module")
def tokens(smollm2: Path) -> TokenDataset:
    data = ChatData(source=FileSource(file="x.jsonl"), task="chat", prompt="{q}", response="{a}")
    task = task_for(data, load_tokenizer(ModelFolder("smollm2", smollm2)))
    return dataset_of([task.render(task.parse({"q": q, "a": a})) for q, a in QUESTIONS])


def trajectory(folder: Path, tokens: TokenDataset, *, fast: bool) -> list[float]:
    model = open_model(ModelFolder("smollm2", folder), FP32, dtype=torch.float32)
    model = make_trainable(model, LoraTuning(method="lora", rank=8), seed=0)
    division = MicroBatchPolicy(1)  # one row per micro-batch
    if fast:
        assert enable_fast_path(model, tokens, 0, FP32) == {}
        assert packing_unsupported_reason(model, tokens, 0, FP32) is None
        division = MicroBatchPolicy(1024, packing="auto", packed_attention=has_packed_attention(model))
        assert [group.shared is not None for group in division.split(tokens, range(len(tokens)))] == [True]
    with contextlib.nullcontext() if fast else use_peft_forward(model):
        return losses(model, tokens, division, steps=STEPS, learning_rate=5e-4, pad_id=0)


def test_fast_and_plain_have_one_trajectory(smollm2: Path, tokens: TokenDataset) -> None:
    wanted, found = trajectory(smollm2, tokens, fast=False), trajectory(smollm2, tokens, fast=True)
    assert wanted[-1] < 0.6 * wanted[0], "it learns, so differences could grow"
    assert found == pytest.approx(wanted, rel=1e-3)
    off = [(one - other) / other for one, other in zip(found, wanted, strict=True)]
    assert abs(sum(off)) / STEPS < 3e-4, f"it drifts to one side: {off}"
