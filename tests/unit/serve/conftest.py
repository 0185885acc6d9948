"""A tiny base with adapters of it, a tuned tiny model, and a server of that for all tests that do not change it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tests.support.served import Server, server
from tests.support.tiny import one_thread, save_model
from tests.support.tuned import CHAT, tuned_model

from tunesmith.fetch.reference import ModelFolder, resolve

ADAPTERS = {"one": {"rank": 4}, "two": {"rank": 2, "rslora": True}, "dora": {"rank": 4, "dora": True}}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ModelFolder]:
    """Return the base, and adapters of it whose answers differ, by name."""
    from tunesmith.model.adapters import save_model as save
    from tunesmith.model.load import ComputeConfig, load_base
    from tunesmith.model.trainable import make_trainable, trained_parameters
    from tunesmith.recipe.tuning import LoraTuning

    root = tmp_path_factory.mktemp("served")
    base = save_model(root / "base", "llama")
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        loaded = load_base(ModelFolder("base", base), ComputeConfig(torch.device("cpu"), torch.float32))
        model = make_trainable(loaded, LoraTuning(method="lora", **settings), seed=seed)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, weight in trained_parameters(model):
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
        save(model, root / name, base=str(base))
    return {name: resolve(str(root / name)) for name in ("base", *ADAPTERS)}


@pytest.fixture(scope="session")
def tuned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with the card of a chat recipe."""
    return tuned_model(tiny, tmp_path_factory.mktemp("served") / "tuned", CHAT, precision="fp32")


@pytest.fixture(scope="module")
def served(tuned: str) -> Iterator[Server]:
    """A server of the tuned model under the name `tiny`, in this process."""
    with one_thread(), server(f"tiny={tuned}") as running:
        yield running
