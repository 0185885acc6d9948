"""Prepared runs of a tiny model over random rows, which train in about a second, and ways to stop and compare them."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.tiny import save_model
from tests.support.tokens import write_examples

from tunesmith.core import interrupt
from tunesmith.core.errors import Interrupted
from tunesmith.core.files import read_json, write_json
from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.records import Example, TokenizedExample, Turn
from tunesmith.core.rundir import RunDir
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.fetch.reference import ModelFolder
from tunesmith.kernels.oom import OomRetry
from tunesmith.model.load import ComputeConfig, load_base
from tunesmith.model.trainable import make_trainable, trained_parameters
from tunesmith.recipe.schedule import plan_steps
from tunesmith.recipe.schema import Recipe
from tunesmith.train import loop, validate
from tunesmith.train.loop import Setup
from tunesmith.train.optim import make_optimizer, optimizer_tensors

LORA = {"method": "lora", "rank": 2, "alpha": 8, "dropout": 0.1}
FULL = {"method": "full"}
NO_DROPOUT = {**LORA, "dropout": 0.0}
BOTH = pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
WITH_ANSWERS = {"valid_metrics": ["chrf"], "select_best_by": "chrf", "valid_rows": 4}
ROWS = 24
CLOCKS = ("seconds", "update_seconds", "tokens_per_second", "peak_memory_gib")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Llama."""
    return save_model(tmp_path_factory.mktemp("base") / "llama", "llama")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def random_rows(count: int, seed: int) -> list[TokenizedExample]:
    """Return rows of 4 to 39 random tokens; about half of them are trained, and always the last."""
    drawn = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(drawn.integers(4, 40))
        trained = (drawn.random(length) < 0.5) & (np.arange(length) > 0)
        trained[-1] = True
        rows.append(
            TokenizedExample(
                f"{seed}-{number}", tuple(drawn.integers(3, 300, length).tolist()), tuple(trained.tolist())
            )
        )
    return rows


def documents(count: int) -> list[Example]:
    """Return documents whose first tokens are the prompts."""
    words = ("one", "two", "red", "blue", "cat", "dog", "go")
    texts = [" ".join(words[(i * 3 + k * k) % 7] for k in range(9)) for i in range(count)]
    return [Example(f"document {i}", i + 1, "g", (Turn("text", text, True),)) for i, text in enumerate(texts)]


def recipe_of(base: Path, tuning: dict[str, Any], **train: Any) -> Recipe:
    """Return a recipe of 6 steps of 4 rows, validated and saved after every second step."""
    given = {
        "learning_rate": 0.01, "epochs": 1, "examples_per_step": 4, "valid_every_steps": 2, "save_every_steps": 2,
        "warmup_fraction": 0.2, **train,
    }  # fmt: skip
    return Recipe.model_validate({
        "name": "tiny", "model": {"base": str(base), "precision": "fp32"},
        "data": {"task": "text", "text": "t", "source": {"file": "x.csv"}},
        "tuning": tuning, "train": given,
        "evaluate": {"metrics": ["perplexity"], "primary": "perplexity", "max_new_tokens": 6},
    })  # fmt: skip


@dataclass
class Job:
    """A recipe and the folder of its run."""

    recipe: Recipe
    run: RunDir

    def train(self) -> dict[str, Any]:
        """Train, or resume from the last checkpoint."""
        from tunesmith.train.train import train

        return train(self.recipe, self.run)

    @property
    def steps(self) -> list[int]:
        """The checkpoints on disk."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.run.checkpoints.glob("step-*"))

    def log(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without times and resource samples."""
        lines = [json.loads(line) for line in self.run.metrics.read_text().splitlines()]
        lines = [line for line in lines if line["kind"] != "machine"]
        return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]

    def answers(self) -> dict[int, list[dict[str, Any]]]:
        """The answers to valid rows, by step."""
        paths = sorted((self.run.stage("train") / "answers").glob("*"))
        lines = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}
        return {int(name.removeprefix("step-").removesuffix(".jsonl")): found for name, found in lines.items()}

    def result(self, step: int) -> dict[str, Any]:
        """The content of a checkpoint: the bytes of its files, and its state without times."""
        folder = self.run.checkpoint(step)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        state = json.loads(files.pop("state.json").read_text())
        del files["manifest.json"]
        state.pop("seconds")
        return {"state": state, **{name: path.read_bytes() for name, path in files.items()}}


MakeJob = Callable[..., Job]
MakeSetup = Callable[..., tuple[Setup, torch.optim.Optimizer]]


def prepared(folder: Path, base: Path, tuning: dict[str, Any], *, valid: int = 6, **train: Any) -> Job:
    """Make a prepared run with 24 training rows."""
    run = RunDir(folder)
    write_json(run.environment, {"recipe_folder": ".."})
    write_json(run.stage("prepare") / "manifest.json", {"files": {}})
    for split, count, seed in (("train", 24, 1), ("valid", valid, 2), ("test", 3, 3)):
        write_examples(run.tokens(split), random_rows(count, seed))
    write_jsonl(run.examples("valid"), (one.to_json() for one in documents(valid)))
    return Job(recipe_of(base, tuning, **train), run)


@pytest.fixture
def new_job(base: Path, tmp_path: Path) -> MakeJob:
    """Return a function that makes prepared runs."""
    return lambda tuning=LORA, *, name="run", **settings: prepared(tmp_path / name, base, tuning, **settings)


@pytest.fixture(scope="session")
def finished_job(base: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """Return a function that gives runs trained without interruption. They are shared: do not change them."""
    jobs: dict[str, Job] = {}

    def trained(tuning: dict[str, Any] = LORA, **settings: Any) -> Job:
        key = json.dumps([tuning, settings], sort_keys=True)
        if key not in jobs:
            jobs[key] = prepared(tmp_path_factory.mktemp("finished") / "run", base, tuning, **settings)
            jobs[key].train()
        return jobs[key]

    return trained


def assert_same_result(one: Job, other: Job) -> None:
    """Assert that two runs have the same files (to the byte), log, manifest and state."""
    assert one.log() == other.log()
    assert one.answers() == other.answers()
    assert one.steps == other.steps
    for step in one.steps:
        assert one.result(step) == other.result(step)
    manifests = [read_json(run.run.stage("train") / "manifest.json") for run in (one, other)]
    for manifest in manifests:
        for name in ("seconds", "tokens_per_second", "peak_memory_gib", "files"):
            del manifest[name]
    assert manifests[0] == manifests[1]


def copied(one: Job, folder: Path) -> Job:
    """Copy a run's folder."""
    shutil.copytree(one.run.path, folder)
    return Job(one.recipe, RunDir(folder))


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def scripted(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Let validation measure these losses, by step."""
    steps = iter(losses)
    monkeypatch.setattr(
        validate,
        "measure",
        lambda setup, tokens, rows, on_progress: ({"loss": losses[next(steps)], "token_accuracy": 0.5}, 10),
    )


def signal_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> None:
    """Send this process a signal at one call of a function."""
    original, calls = getattr(module, name), []

    def signalling(*args: Any, **given: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **given)

    monkeypatch.setattr(module, name, signalling)


@pytest.fixture
def stopped(new_job: MakeJob) -> Job:
    """A stopped run with checkpoints 2 and 4."""
    job = new_job(keep_checkpoints=3)
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, loop, "accumulate_gradients", 6)
        with interrupt.catch_signals(), pytest.raises(Interrupted):
            job.train()
    assert job.steps == [2, 4, 5]
    shutil.rmtree(job.run.checkpoint(5))
    return job


@pytest.fixture
def new_setup(base: Path, tmp_path: Path) -> MakeSetup:
    """Return a function that makes a Setup and its optimizer."""
    write_examples(tmp_path / "tokens.safetensors", random_rows(ROWS, 1))

    def new(
        tuning: dict[str, Any] = NO_DROPOUT, dtype: torch.dtype = torch.float32, **train: Any
    ) -> tuple[Setup, torch.optim.Optimizer]:
        recipe = recipe_of(base, tuning, **{"examples_per_step": 8, "epochs": 2, **train})
        compute = ComputeConfig(torch.device("cpu"), dtype)
        master_dtype = torch.float32 if tuning == FULL and dtype == torch.float16 else dtype
        model = make_trainable(load_base(ModelFolder("x", base), compute, dtype=master_dtype), recipe.tuning, seed=0)
        tokens = TokenDataset(tmp_path / "tokens.safetensors")
        size = recipe.train.micro_batch
        oom_retry = OomRetry(MicroBatchPolicy(256, None if size == "auto" else int(size), recipe.train.packing))
        setup = Setup(recipe, plan_steps(recipe, len(tokens)), compute, model, tokens, 2, oom_retry)
        return setup, make_optimizer(model, recipe.train)

    return new


def weights(model: Any) -> torch.Tensor:
    return torch.cat([weight.detach().flatten().clone() for _, weight in trained_parameters(model)])


def all_state(setup: Setup, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return copies of all weights and of the optimizer's state."""
    state = {name: value.clone() for name, value in optimizer_tensors(setup.model, optimizer).items()}
    return state | {name: weight.detach().clone() for name, weight in setup.model.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
