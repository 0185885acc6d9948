"""Show tokens one by one as text, in the terminal, the report and `show`."""

from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.core.records import TokenizedExample
from tunesmith.tasks.tokenizer import TokenizerAdapter

_REPLACEMENT = "\ufffd"
# A character has at most four bytes in UTF-8, so it spans at most four tokens.
_MAX_TOKENS = 4


def token_view(tokens: TokenizedExample, tokenizer: TokenizerAdapter) -> list[dict[str, Any]]:
    """Return each token as {text, id, trained, special}, with an encoder's tokens first.

    See `token_texts` for characters that span several tokens.
    """
    encoder_ids = [tuple(map(int, ids)) for column, ids in tokens.columns.items() if column.per == "ids"]
    texts = [text for ids in (*encoder_ids, tokens.input_ids) for text in token_texts(ids, tokenizer.decode)]
    ids = [i for part in (*encoder_ids, tokens.input_ids) for i in part]
    trained = (False,) * (len(ids) - len(tokens.trained)) + tokens.trained
    return [
        {"text": text, "id": i, "trained": learned, "special": i in tokenizer.control_ids}
        for text, i, learned in zip(texts, ids, trained, strict=True)
    ]


def token_texts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return the text of each token; concatenated, they are the text of all tokens.

    If a character spans several tokens, the first has the whole character and the others are empty. A token whose bytes
    form no character is U+FFFD. Each token is decoded after the previous one, because some decoders strip the space at
    the start of a text.
    """
    texts = [""] * len(ids)
    context, first = 0, 0  # tokens from `first` on have no text yet; they are decoded after those from `context` on
    for end in range(1, len(ids) + 1):
        while first < end:
            text = _decode_after(ids[context:first], ids[first:end], decode)
            is_invalid = end - first >= _MAX_TOKENS or end == len(ids) or not text.endswith(_REPLACEMENT)
            if text.startswith(_REPLACEMENT) and is_invalid:
                # This token starts no character, but the next one may.
                texts[first] = decode(ids[first : first + 1])
                context = first = first + 1
                continue
            if not text.endswith(_REPLACEMENT) or end == len(ids):
                texts[first] = text
                context, first = first, end
            break
    return texts


def _decode_after(context: Sequence[int], ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
    """Return the text that ids add to the text of their context."""
    prefix = decode(context) if context else ""
    whole = decode([*context, *ids])
    return whole[len(prefix) :] if whole.startswith(prefix) else decode(ids)
