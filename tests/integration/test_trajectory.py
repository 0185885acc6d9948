"""The fast path on the real model learns what transformers and peft learn by themselves: loss by loss, no drift."""

import contextlib
from pathlib import Path

import pytest
import torch
from tests.support.trajectory import losses

from tunesmith.data.batches import TokenSet
from tunesmith.data.microbatch import Division
from tunesmith.fetch.reference import ModelFolder
from tunesmith.kernels.fast_path import take_fast_path
from tunesmith.kernels.packed_attention import has_row_attention
from tunesmith.kernels.packing_check import why_not_apart
from tunesmith.model.adapters import make_trainable, open_model
from tunesmith.model.load import Machine
from tunesmith.model.lora import as_peft_computes
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import ChatData, LoraTuning
from tunesmith.tasks import task_for
from tunesmith.tasks.chatml import codec_of

pytestmark = [pytest.mark.model, pytest.mark.slow]

FP32 = Machine(torch.device("cpu"), torch.float32)
STEPS = 6
QUESTIONS = [
    ("Name the capital of France.", "Paris."),
    ("What is two and two?", "It is four."),
    ("Write a sentence about a red fox that runs over a hill.", "A red fox runs over the hill before the sun is up."),
    ("Which month comes after May?", "June comes after May."),
]


@pytest.fixture(scope="module")
def tokens(smollm2: Path) -> TokenSet:
    data = ChatData(source=FileSource(file="x.jsonl"), task="chat", prompt="{q}", response="{a}")
    task = task_for(data, codec_of(ModelFolder("smollm2", smollm2)))
    return TokenSet.of([task.render(task.parse({"q": q, "a": a})) for q, a in QUESTIONS])


def trajectory(folder: Path, tokens: TokenSet, *, fast: bool) -> list[float]:
    model = open_model(ModelFolder("smollm2", folder), FP32, dtype=torch.float32)
    model = make_trainable(model, LoraTuning(method="lora", rank=8), seed=0)
    division = Division(1)  # a row a pass
    if fast:
        assert take_fast_path(model, tokens, 0, FP32) == {}
        assert why_not_apart(model, tokens, 0, FP32) is None
        division = Division(1024, packing="auto", by_row=has_row_attention(model))
        assert [group.shared is not None for group in division.groups(tokens, range(len(tokens)))] == [True]
    with contextlib.nullcontext() if fast else as_peft_computes(model):
        return losses(model, tokens, division, steps=STEPS, learning_rate=5e-4, pad_id=0)


def test_fast_and_plain_have_one_trajectory(smollm2: Path, tokens: TokenSet) -> None:
    wanted, found = trajectory(smollm2, tokens, fast=False), trajectory(smollm2, tokens, fast=True)
    assert wanted[-1] < 0.6 * wanted[0], "it learns, so differences could grow"
    assert found == pytest.approx(wanted, rel=1e-3)
    off = [(one - other) / other for one, other in zip(found, wanted, strict=True)]
    assert abs(sum(off)) / STEPS < 3e-4, f"it drifts to one side: {off}"
