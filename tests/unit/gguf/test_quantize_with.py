"""`--quantize-with`: a program writes the file, and a program that fails leaves nothing."""

from pathlib import Path

import pytest
from tests.support import tiny
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.gguf.quantize_with import write_quantized_gguf


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("llama") / "model", "llama")


def program(folder: Path, body: str) -> Path:
    """Write a program in place of llama-quantize, which gets the paths of both files and the type."""
    path = folder / "llama quantize; x"  # a name that a shell would take apart
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_program_writes_the_file(llama: Path, tmp_path: Path) -> None:
    body = 'test "$3" = Q4_K_M && cp "$1" "$2" && echo "WARNING: 3 of 15 tensor(s) required fallback quantization"'
    out = tmp_path / "model.gguf"
    warnings = write_quantized_gguf(llama, out, type="q4_k_m", program=program(tmp_path, body))
    assert out.read_bytes()[:4] == b"GGUF"
    assert "3 of 15" in warnings[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama quantize; x", "model.gguf"]


@pytest.mark.parametrize("body", ["exit 3", "exit 0", 'echo junk > "$2"', "kill -9 $$"])
def test_a_program_that_fails_leaves_nothing(body: str, llama: Path, tmp_path: Path) -> None:
    made = program(tmp_path, body)
    with raises(TunesmithError, "quantize-failed"):
        write_quantized_gguf(llama, tmp_path / "model.gguf", type="q6_k", program=made)
    assert list(tmp_path.iterdir()) == [made]


def test_what_is_wrong_before_the_program_starts(llama: Path, tmp_path: Path) -> None:
    with raises(RecipeError, "not-found"):
        write_quantized_gguf(llama, tmp_path / "model.gguf", type="q6_k", program=tmp_path / "nothing")
    with raises(RecipeError, "unknown-gguf-type"):
        write_quantized_gguf(llama, tmp_path / "model.gguf", type="q8_0", program="true")
