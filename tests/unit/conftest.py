"""What unit tests share: a model folder that has a tokenizer and no weights, so that no model has to be made."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `resolve` takes for a model: the tiny byte-level tokenizer, ChatML and a configuration."""
    from tests.tiny import tokenizer

    folder = tmp_path_factory.mktemp("models") / "tokenizer-only"
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    return folder
