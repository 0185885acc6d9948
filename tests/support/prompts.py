"""Prompts of random ids, a task that decodes answers to numbers, and a tiny model: shared by tests of generation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.support.tiny import save_model

from tunesmith.core.records import Example, Turn
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.prompts import Prompts
from tunesmith.model.load import ComputeConfig, load_base

FP32 = ComputeConfig(torch.device("cpu"), torch.float32)
COUNT, LIMIT, POSITIONS = 10, 6, 512


class NumberTask:
    """A task whose answers are their ids as text, with separators that JSON lines must escape."""

    def decode_answer(self, ids: Sequence[int]) -> str:
        return "\u2028\x85 ".join(map(str, ids))

    def reference(self, turns: Sequence[Turn]) -> str:
        return turns[-1].text


def random_model(folder: Path) -> Any:
    return load_base(ModelFolder("x", save_model(folder / "llama", "llama")), FP32)


def make_prompts(count: int = COUNT, lengths: Sequence[int] = ()) -> Prompts:
    examples = tuple(
        Example(f"id-{i}", i + 1, "g", (Turn("user", "q", False), Turn("assistant", f"right {i}", True)))
        for i in range(count)
    )
    sizes = [*lengths, *(3 + i % 5 for i in range(count))][:count]
    prompts = tuple(tuple(5 + (i * 7 + k) % 290 for k in range(size)) for i, size in enumerate(sizes))
    return Prompts(examples, prompts, tuple(f"prompt {i}" for i in range(count)), (), LIMIT)
