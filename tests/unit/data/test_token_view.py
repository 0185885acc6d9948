"""Token texts lose nothing, and show a character that spans several tokens once."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.core.records import TokenizedExample
from tunesmith.data.token_view import token_texts, token_view
from tunesmith.tasks.tokenizer import TokenizerAdapter


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> TokenizerAdapter:
    return TokenizerAdapter.load(tokenizer_folder)


def test_token_view_marks_trained_and_special_tokens(tokenizer: TokenizerAdapter) -> None:
    end = tokenizer.encode_trusted("<|im_end|>")[0]
    shown = token_view(TokenizedExample("x", (*tokenizer.encode_trusted("ab"), end), (False, True, True)), tokenizer)
    assert "".join(token["text"] for token in shown) == "ab<|im_end|>"
    assert [(token["trained"], token["special"]) for token in shown] == [(False, False), (True, False), (True, True)]


def test_character_of_several_tokens_is_shown_at_the_first(tokenizer: TokenizerAdapter) -> None:
    ids = tokenizer.encode_untrusted("a😀é.")
    assert len(ids) == 8  # bytes, because this tokenizer has no tokens for these characters
    assert token_texts(ids, tokenizer.decode) == ["a", "😀", "", "", "", "é", "", "."]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_token_texts_concatenate_to_the_text(tokenizer: TokenizerAdapter, text: str) -> None:
    assert "".join(token_texts(tokenizer.encode_untrusted(text), tokenizer.decode)) == text


def test_invalid_bytes_are_shown_as_replacement_characters(tokenizer: TokenizerAdapter) -> None:
    first, *rest = tokenizer.encode_untrusted("😀")
    [letter] = tokenizer.encode_untrusted("a")
    assert token_texts([first, letter], tokenizer.decode) == ["\ufffd", "a"]
    assert token_texts([letter, first], tokenizer.decode) == ["a", "\ufffd"]
    assert token_texts([*rest, letter], tokenizer.decode) == ["\ufffd"] * 3 + ["a"]
    assert token_texts([rest[0], first, *rest, letter], tokenizer.decode) == ["\ufffd", "😀", "", "", "", "a"]
    assert token_texts([first] * 6, tokenizer.decode) == ["\ufffd"] * 6
    assert token_texts([], tokenizer.decode) == []


def test_spaces_that_a_decoder_strips_are_kept() -> None:
    words = ["▁one", "▁two", "s", "▁"]

    def decode(ids: object) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")  # type: ignore[attr-defined]

    assert token_texts([0, 1, 2, 3, 1], decode) == ["one", " two", "s", " ", " two"]
