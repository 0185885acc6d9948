"""What unit tests share: one thread for tiny models, and a model folder that has a tokenizer and no weights."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

# Folders whose tests compute with models; the others never wait for torch.
COMPUTING = ("answering", "evaluate", "model", "train")


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute in one thread: tiny models are slower in two, and much slower where the cores are busy."""
    if request.path.parent.name not in COMPUTING:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `resolve` takes for a model: the tiny byte-level tokenizer, ChatML and a configuration."""
    from tests.tiny import tokenizer

    folder = tmp_path_factory.mktemp("models") / "tokenizer-only"
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    return folder
