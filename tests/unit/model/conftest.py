"""Tiny models of many architectures, made when a test asks for one and kept for the session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import save_model

from tunesmith.fetch.reference import ModelFolder

KINDS = ("llama", "gpt2", "gpt_neo", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi", "phi3", "granite")

Opened = Callable[..., Any]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a random tiny model of an architecture."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("tiny-models")

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_model(root / kind, kind)
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def opened(folder_of: Callable[[str], Path]) -> Opened:
    """Load a tiny model of an architecture, as the project does."""
    import torch

    from tunesmith.model.load import Machine, load_base

    def load(kind: str, dtype: Any = None) -> Any:
        on = Machine(torch.device("cpu"), dtype or torch.float32)
        return load_base(ModelFolder(kind, folder_of(kind)), on).eval()

    return load
