"""Tokens as text for people: nothing is lost, and a character of several tokens is whole."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.core.records import Tokens
from tunesmith.data.token_view import pieces, token_view
from tunesmith.tasks.tokenizer import Codec


@pytest.fixture(scope="module")
def codec(tokenizer_folder: Path) -> Codec:
    return Codec.load(tokenizer_folder)


def test_tokens_are_shown_one_by_one(codec: Codec) -> None:
    end = codec.markup("<|im_end|>")[0]
    shown = token_view(Tokens("x", (*codec.markup("ab"), end), (False, True, True)), codec)
    assert "".join(token["text"] for token in shown) == "ab<|im_end|>"
    assert [(token["trained"], token["special"]) for token in shown] == [(False, False), (True, False), (True, True)]


def test_a_character_of_several_tokens_is_whole_at_the_first(codec: Codec) -> None:
    ids = codec.personal("a😀é.")
    assert len(ids) == 8  # bytes, for this tokenizer has learned neither
    assert pieces(ids, codec.decode) == ["a", "😀", "", "", "", "é", "", "."]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_pieces_of_any_text_are_that_text(codec: Codec, text: str) -> None:
    assert "".join(pieces(codec.personal(text), codec.decode)) == text


def test_bytes_that_form_no_character_are_shown_as_such_and_hide_nothing(codec: Codec) -> None:
    first, *rest = codec.personal("😀")
    [letter] = codec.personal("a")
    assert pieces([first, letter], codec.decode) == ["\ufffd", "a"]
    assert pieces([letter, first], codec.decode) == ["a", "\ufffd"]
    assert pieces([*rest, letter], codec.decode) == ["\ufffd"] * 3 + ["a"]
    assert pieces([rest[0], first, *rest, letter], codec.decode) == ["\ufffd", "😀", "", "", "", "a"]
    assert pieces([first] * 6, codec.decode) == ["\ufffd"] * 6
    assert pieces([], codec.decode) == []


def test_blanks_that_a_decoder_swallows_are_kept() -> None:
    words = ["▁one", "▁two", "s", "▁"]

    def decode(ids: object) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")  # type: ignore[attr-defined]

    assert pieces([0, 1, 2, 3, 1], decode) == ["one", " two", "s", " ", " two"]
