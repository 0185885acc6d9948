"""The name of a model in a file fits the blanks that its tokens remove."""

import pytest

from tunesmith.gguf.model_name import name_in_file, strips_like_phi3

_VOCABULARY = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "a"]


def added(strips: set[str], *, lstrip: bool = False) -> list[dict[str, object]]:
    return [{"content": name, "rstrip": name in strips, "lstrip": lstrip} for name in _VOCABULARY[:5]]


def test_tokens_of_phi3() -> None:
    assert strips_like_phi3(added({"</s>", "<|user|>"}), _VOCABULARY)
    assert not strips_like_phi3(added({"<|user|>"}), _VOCABULARY)
    assert not strips_like_phi3(added({"</s>", "<|user|>", "<s>"}), _VOCABULARY)
    assert not strips_like_phi3(added({"</s>", "<|user|>"}, lstrip=True), _VOCABULARY)
    assert not strips_like_phi3(added({"</s>", "<|user|>"}), _VOCABULARY[1:])
    assert not strips_like_phi3(added(set()), _VOCABULARY)


@pytest.mark.parametrize("name", ["my-phi-3-tune", "Phi3", "PHI-3 mini", "shop", "modern-bert-shop"])
def test_names(name: str) -> None:
    with_rule, without = (name_in_file(name, strips_like_phi3=strips).lower() for strips in (True, False))
    assert "phi-3" in with_rule or "phi3" in with_rule
    assert not any(part in without for part in ("phi-3", "phi3", "modern-bert"))
