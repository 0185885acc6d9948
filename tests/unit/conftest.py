"""What unit tests share: one thread for tiny models, and a model folder that has a tokenizer and no weights."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from tests.support.opened import folder_of, opened  # noqa: F401  (fixtures)
from tests.support.tiny import make_tokenizer, one_thread

# Folders whose tests compute with models; the others never wait for torch.
COMPUTING = ("distributed", "evaluate", "export", "inference", "kernels", "model", "serve", "train")


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    with one_thread() if request.path.parent.name in COMPUTING else nullcontext():
        yield


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `resolve` takes for a model: the tiny byte-level tokenizer, ChatML and a configuration."""
    folder = tmp_path_factory.mktemp("models") / "tokenizer-only"
    make_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    return folder
