"""The options with which vLLM serves a folder and its adapters, and what is said if it is not installed.

tests/integration/test_vllm.py asks a real one.
"""

import importlib.util
import json
from pathlib import Path

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.engines.vllm import PYTHON_VARIABLE, max_lora_rank, serve_options, start_vllm


def adapter(folder: Path, *, template: bool = True, **config: object) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if template:
        (folder / "chat_template.jinja").write_text("")
    return folder


@pytest.mark.parametrize(("rank", "limit"), [(1, 1), (4, 8), (8, 8), (65, 128), (300, 320), (600, 600)])
def test_the_limit_is_one_that_vllm_accepts(rank: int, limit: int) -> None:
    assert max_lora_rank(rank) == limit


def test_a_folder_is_served_without_its_sampling() -> None:
    assert serve_options({}) == ["--generation-config", "vllm"]


def test_an_adapter_is_served_with_its_rank_and_its_chat_template(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", r=4, rank_pattern={"q_proj": 12})
    assert serve_options({"tuned": folder})[2:] == [
        "--enable-lora", "--max-lora-rank", "16", "--lora-modules", f"tuned={folder}",
        "--chat-template", str(folder / "chat_template.jinja"),
    ]  # fmt: skip


def test_a_chat_template_is_given_only_if_there_is_one_for_all(tmp_path: Path) -> None:
    plain, first, second = (adapter(tmp_path / name, r=8, template=name != "a") for name in "abc")
    assert "--chat-template" not in serve_options({"a": plain})
    assert "--chat-template" not in serve_options({"b": first, "c": second})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_a_missing_vllm_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    with raises(RecipeError, "missing-package", PYTHON_VARIABLE):
        start_vllm(tmp_path, name="m")
