"""Streamed text is the text of the whole answer, however it is cut into tokens."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tiny import make_tokenizer

from tunesmith.inference.request import StopStrings
from tunesmith.inference.text_stream import TextStream
from tunesmith.recipe.data_record import UNKNOWN_SOURCE
from tunesmith.recipe.schema import ChatData
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

TEXTS = [
    "Hi ",
    "\n\n",
    "\u00a0",
    "👩🏽‍🚀",
    "é",
    "日本",
    "a",
    " a",
    "ab",
    "STOP",
    "ST",
    "O",
    "<think>",
    "</think>",
    "\n",
    ".",
    "¿",
]
STOPS: list[tuple[str, ...]] = [(), ("STOP",), ("\n\n", "ab"), ("a ST", " a"), ("👩",), ("aa",)]
LEAD = "<think>\n\n</think>\n\n"


def decode(tokens: Sequence[int]) -> str:
    """Decode bytes, as byte-level tokenizers do."""
    return bytes(tokens).decode(errors="replace")


def decode_chat(tokens: Sequence[int]) -> str:
    return decode(tokens).removeprefix(LEAD).strip()


def streamed(stream: TextStream, tokens: Sequence[int]) -> list[str]:
    return [*(stream.feed(token) for token in tokens), stream.finish()]


ANSWERS = st.lists(
    st.sampled_from([*(text.encode() for text in TEXTS), b"\xf0\x9f", b"\x80", LEAD.encode()]), max_size=8
)


@given(ANSWERS, st.sampled_from(STOPS), st.booleans())
def test_parts_are_together_the_text_of_the_answer(pieces: list[bytes], stop: tuple[str, ...], is_chat: bool) -> None:
    stops, decoder = StopStrings(stop, decode) if stop else None, decode_chat if is_chat else decode
    tokens: list[int] = []
    for byte in b"".join(pieces):  # generation ends at the first stop string
        tokens.append(byte)
        if stops and stops.completed_by_last(tokens):
            break
    stream = TextStream(decoder, stops=stops, lead=LEAD if is_chat else "")
    parts = streamed(stream, tokens)
    whole = decoder(tokens)
    assert "".join(parts) == (stops.cut(whole) if stops else whole)


def test_text_is_sent_as_soon_as_it_is_certain() -> None:
    tokens = "Hi 👩!\n\nThere".encode()
    parts = streamed(TextStream(decode_chat), tokens)
    assert [part for part in parts if part] == ["H", "i", " 👩", "!", "\n\nT", "h", "e", "r", "e"]
    stops = StopStrings(("ere!",), decode)
    assert streamed(TextStream(decode, stops=stops), b"There")[-4:] == ["", "", "", "ere"], "it may be the stop string"
    assert streamed(TextStream(decode_chat, lead=LEAD), LEAD.encode() + b"<t")[-1] == "<t"


@pytest.mark.parametrize("reasoning", [None, "strip"])
def test_streams_of_a_chat_task(reasoning: Any) -> None:
    tokenizer = TokenizerAdapter(make_tokenizer())
    task = ChatTask(ChatData(source=UNKNOWN_SOURCE, task="chat", messages="messages", reasoning=reasoning), tokenizer)
    ids = [*tokenizer.encode_untrusted("<think>\nhm\n</think>\n\n 👩🏽‍🚀 one two "), task.stop_ids[0]]
    parts = streamed(TextStream.of_task(task), ids)
    assert "".join(parts) == task.decode_answer(ids)
    assert (sum(map(bool, parts)) > 3) is not bool(reasoning), "a thought is removed, so the answer comes at its end"
