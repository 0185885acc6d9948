"""Patterns of modules to freeze: what they match, how wrong ones are refused, and how many parameters they freeze."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.errors import raises
from tests.support.tiny import save_model

from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.freezing import (
    frozen_parameters,
    is_frozen,
    require_matches,
    trains_embedding,
)
from tunesmith.core.errors import RecipeError

NAMES = ("model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight", "model.layers.12.self_attn.q_proj.weight")


@pytest.mark.parametrize(
    ("pattern", "frozen"),
    [
        ("model.embed_tokens", [True, False, False]),
        ("embed_tokens", [True, False, False]),
        ("embed", [False, False, False]),
        ("embed*", [True, False, False]),
        ("layers.0-11", [False, True, False]),
        ("layers.2", [False, True, False]),
        ("layers.1*", [False, False, True]),
        ("layers.*.mlp", [False, True, False]),
        ("layers.mlp", [False, False, False]),
        ("model", [True, True, True]),
        ("q_proj.weight", [False, False, True]),
    ],
)
def test_a_pattern_matches_parts_of_a_path(pattern: str, frozen: list[bool]) -> None:
    assert [is_frozen(name, [pattern]) for name in NAMES] == frozen


def test_patterns_without_a_module_name_the_closest() -> None:
    with raises(RecipeError, "no-module", "embed_token", "`embed_tokens`", where="tuning.freeze"):
        require_matches(["layers.2", "embed_token"], NAMES)
    with raises(RecipeError, "no-module", "layers.30-40", "layers."):
        require_matches(["layers.30-40"], NAMES)
    with raises(RecipeError, "no-module", "freeze"):
        require_matches(["model"], NAMES)
    require_matches(["embed_tokens", "layers.0-3"], NAMES)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("frozen")
    return lambda kind: save_model(root / kind, kind)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt_neo"])
def test_frozen_parameters_are_those_of_torch(folder_of: Callable[[str], Path], kind: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = folder_of(kind)
    shapes = shapes_of(folder)
    stack = "h" if kind.startswith("gpt") else "layers"
    embedding = "wte" if kind.startswith("gpt") else "embed_tokens"
    weights = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters(remove_duplicate=False))
    for patterns in ([embedding], [f"{stack}.0"], [f"{stack}.0-1", embedding], [f"{stack}.*.mlp"], []):
        tensors = {id(weight): weight.numel() for name, weight in weights.items() if is_frozen(name, patterns)}
        assert frozen_parameters(shapes, patterns) == pytest.approx(sum(tensors.values()), rel=0.02), patterns
        assert trains_embedding(shapes, patterns) is (embedding not in patterns)
