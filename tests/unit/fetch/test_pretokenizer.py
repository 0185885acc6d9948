"""Each name of a pre-tokenizer splits texts by its patterns, and is found again from the tokenizer that it made."""

from typing import Any

import pytest
from tests.support.tiny import make_tokenizer
from tokenizers import Regex, pre_tokenizers

from tunesmith.fetch.pretokenizer import PRE_TOKENIZERS, gguf_name, set_pre_tokenizer, split_patterns, splits_as

# Splits that differ between the names; the pieces are those of llama.cpp b11549.
PIECES = {
    "gpt-2": ("x\n\n  12", ["x", "\n\n ", " 12"]),
    "smollm": ("x\n\n  12", ["x", "\n\n  ", "1", "2"]),
    "llama-bpe": ("I'LL 1234!\n", ["I", "'LL", " ", "123", "4", "!\n"]),
    "qwen2": ("I'LL 12!\n", ["I", "'LL", " ", "1", "2", "!\n"]),
    "gpt-4o": ("aBc'S/\n", ["a", "Bc'S", "/\n"]),
    "tekken": ("aBc'S 12", ["a", "Bc", "'S", " ", "1", "2"]),
    "deepseek-v3": ("1234日本-ab", ["123", "4", "日本", "-ab"]),
    "falcon": ("a`b 1234", ["a", "`", "b", " ", "123", "4"]),
    "default": ("a`b+ 1234", ["a", "`", "b", "+", " ", "123", "4"]),
    "bloom": ("one, two", ["one", ",", " two"]),
}


def backend(name: str) -> Any:
    made = make_tokenizer().backend_tokenizer
    set_pre_tokenizer(made, name)
    return made


@pytest.mark.parametrize("name", PIECES)
def test_texts_are_split_by_the_patterns_of_the_name(name: str) -> None:
    text, pieces = PIECES[name]
    spans = [span for _, span in backend(name).pre_tokenizer.pre_tokenize_str(text)]
    assert [text[first:last] for first, last in spans] == pieces


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_the_name_of_a_pre_tokenizer_is_found_again(name: str) -> None:
    found = gguf_name(backend(name))
    assert found is not None
    assert PRE_TOKENIZERS[found][:2] == PRE_TOKENIZERS[name][:2]
    assert splits_as(backend(name), name)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError):
        set_pre_tokenizer(make_tokenizer().backend_tokenizer, "kimi-k2")


def test_a_name_needs_equal_patterns_and_an_equal_use_of_merges() -> None:
    llama, other = backend("llama-bpe"), backend("llama-bpe")
    other.model.ignore_merges = False
    assert (gguf_name(llama), gguf_name(other)) == ("llama-bpe", "smaug-bpe")
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("x+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert gguf_name(other) is None


@pytest.mark.parametrize(
    "other",
    [
        None,
        pre_tokenizers.Metaspace(),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex("x"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    ],
)
def test_other_pre_tokenizers_have_no_patterns(other: Any) -> None:
    assert split_patterns(other) is None
