"""A tiny base with adapters of it, workers of those, a tuned tiny model, and a server of that."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.served import Server, server
from tests.support.tiny import one_thread, save_model
from tests.support.tuned import CHAT, tuned_model
from tests.support.workers import ADAPTERS, FP32, NAMES, Folders

from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.inference.generate import generate
from tunesmith.inference.sampling import GREEDY, Sampling
from tunesmith.model.adapters import open_model
from tunesmith.model.adapters import save_model as save_adapter
from tunesmith.model.load import load_base
from tunesmith.model.trainable import make_trainable, trained_parameters
from tunesmith.recipe.tuning import LoraTuning
from tunesmith.serve.worker import Worker


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Return the base, and adapters of it whose answers differ, by name."""
    root = tmp_path_factory.mktemp("served")
    base = save_model(root / "base", "llama")
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        loaded = load_base(ModelFolder("base", base), FP32)
        model = make_trainable(loaded, LoraTuning(method="lora", **settings), seed=seed)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, weight in trained_parameters(model):
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
        save_adapter(model, root / name, base=str(base))
    return {name: resolve(str(root / name)) for name in NAMES}


@pytest.fixture
def own(folders: Folders) -> Iterator[Callable[..., Worker]]:
    """Return a function that starts a worker of one test."""
    workers: list[Worker] = []

    def start(*names: str, **settings: Any) -> Worker:
        models = {name: folders[name] for name in names}
        workers.append(Worker(models, precision="fp32", **{"max_slots": 4, **settings}))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture(scope="session")
def alone(folders: Folders) -> Callable[..., tuple[int, ...]]:
    """Return a function that gives the answer of `generate` to a single prompt."""
    models = {name: open_model(folder, FP32).eval() for name, folder in folders.items()}

    def answer(name: str, prompt: Sequence[int], limit: int = 8, sampling: Sampling = GREEDY) -> tuple[int, ...]:
        [found] = generate(models[name], [prompt], stop_ids=(), max_new_tokens=limit, sampling=[sampling])
        return found.ids

    return answer


@pytest.fixture(scope="session")
def tuned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with the card of a chat recipe."""
    return tuned_model(tiny, tmp_path_factory.mktemp("served") / "tuned", CHAT, precision="fp32")


@pytest.fixture(scope="module")
def served(tuned: str) -> Iterator[Server]:
    """A server of the tuned model under the name `tiny`, in this process, for tests that do not change it."""
    with one_thread(), server(f"tiny={tuned}") as running:
        yield running
