"""The bytes of single tokens. A token may hold only a part of a character, so its text alone does not tell them."""

import re
from functools import cache

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@cache
def _byte_of_letter() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for.

    As in GPT-2's tokenizer, a printable byte of Latin-1 is its own letter, and the others are letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(0x100) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def bytes_of_token(token: str, text: str) -> bytes:
    """Return the bytes of a token.

    Args:
        token: the token as the vocabulary writes it.
        text: its text, in which U+FFFD stands for bytes that are no whole character.
    """
    if "\ufffd" not in text:
        return text.encode()
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    letters = _byte_of_letter()
    return bytes(letters[letter] for letter in token) if set(token) <= letters.keys() else text.encode()
