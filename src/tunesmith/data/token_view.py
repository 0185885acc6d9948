"""Tokens one by one as text for people: what stands in a terminal, in the report and in `show`."""

from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.core.records import TokenizedExample
from tunesmith.tasks.tokenizer import TokenizerAdapter

_BROKEN = "\ufffd"
# UTF-8 writes a character in at most four bytes, so no character is spread over more tokens.
_MOST_TOKENS = 4


def token_view(tokens: TokenizedExample, tokenizer: TokenizerAdapter) -> list[dict[str, Any]]:
    """Return each token as {text, id, trained, special}, those that are read apart (by an encoder) first.

    See `token_texts` for characters of several tokens.
    """
    apart = [tuple(map(int, ids)) for column, ids in tokens.columns.items() if column.per == "ids"]
    texts = [text for ids in (*apart, tokens.input_ids) for text in token_texts(ids, tokenizer.decode)]
    ids = [i for some in (*apart, tokens.input_ids) for i in some]
    trained = (False,) * (len(ids) - len(tokens.trained)) + tokens.trained
    return [
        {"text": text, "id": i, "trained": learned, "special": i in tokenizer.control_ids}
        for text, i, learned in zip(texts, ids, trained, strict=True)
    ]


def token_texts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return the text of each token, so that together they are the text of all.

    The bytes of one character may be spread over several tokens: the first then has the whole character and the others
    have no text. Every token whose bytes form no character is a U+FFFD. A token is decoded behind the one before it,
    because some decoders swallow the blank that a text begins with.
    """
    texts = [""] * len(ids)
    before, first = 0, 0  # tokens from `first` on have no text yet, those from `before` on stand in front of them
    for end in range(1, len(ids) + 1):
        while first < end:
            text = _behind(ids[before:first], ids[first:end], decode)
            hopeless = end - first >= _MOST_TOKENS or end == len(ids) or not text.endswith(_BROKEN)
            if text.startswith(_BROKEN) and hopeless:
                # What cannot become a character any more; what follows may still be one.
                texts[first] = decode(ids[first : first + 1])
                before = first = first + 1
                continue
            if not text.endswith(_BROKEN) or end == len(ids):
                texts[first] = text
                before, first = first, end
            break
    return texts


def _behind(before: Sequence[int], ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
    """Return what ids add to the text of those before them."""
    opening = decode(before) if before else ""
    whole = decode([*before, *ids])
    return whole[len(opening) :] if whole.startswith(opening) else decode(ids)
