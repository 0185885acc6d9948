"""The format `gguf` refuses a model before it is merged, or before a run trains it."""

from pathlib import Path
from typing import Any

import pytest
from tests.support import tiny
from tests.support.errors import raises
from tests.support.gguf_tokenizers import save_unknown_pre_tokenizer

from tunesmith.core.errors import RecipeError
from tunesmith.export.formats import Options
from tunesmith.export.gguf import check
from tunesmith.fetch.model_folder import ModelFolder


def test_tokenizer_that_llama_cpp_lacks(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", "llama")
    check(ModelFolder("model", folder), Options())
    save_unknown_pre_tokenizer(folder)
    with raises(RecipeError, "gguf-unsupported"):
        check(ModelFolder("model", folder), Options())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("granite", {}), ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}})],
)
def test_architecture_that_llama_cpp_lacks(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", kind, **changes)
    with raises(RecipeError, "gguf-unsupported"):
        check(ModelFolder("model", folder), Options())


def test_end_of_text_that_training_may_add(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", "llama", template=None)
    tokenizer = tiny.make_tokenizer(None)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    check(ModelFolder("model", folder), Options())
