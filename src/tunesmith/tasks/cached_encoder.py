"""Encode text word by word, with a cache of words, if the tokenizer itself encodes words independently.

Most current tokenizers split a text into words by a fixed pattern and encode each on its own. The rows of a dataset
share most of their words, and looking words up takes a fraction of the time. The patterns are not implemented again
here: a text is cut only at single spaces between two non-blank characters, which are inside no word by any known
pattern, and the tokenizer encodes each piece. A tokenizer that is not known to work this way gets every text whole.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

from tunesmith.fetch.pretokenizer import (
    DIGIT,
    DIGITS,
    GPT2,
    LLAMA3,
    O200K,
    QWEN2,
    QWEN35,
    TEKKEN,
    single_steps,
    split_patterns,
)
from tunesmith.tasks.base import RowProblem

# A space between two characters that are not blanks in any version of Unicode.
_CUTS = re.compile(r"(?<=[\w!-~])(?= [\w!-~])")
_SPACE_AFTER_CHARACTER = re.compile(r"\S ")
_CACHE_SIZE = 2**15
_MAX_CACHED_LENGTH = 64  # characters
# Each of the patterns of a pre-tokenizer. In all of them, a space after another character begins a word.
KNOWN_PATTERNS = (
    (GPT2,), (DIGIT, GPT2), (DIGITS, GPT2), (LLAMA3,), (QWEN2,), (QWEN35,), (O200K,), (TEKKEN,),
)  # fmt: skip


class CachedWord(NamedTuple):
    """A piece of text and its tokens.

    Attributes:
        length: in characters.
        ids: token ids.
        spans: (first, last) character of each token, as the tokenizer reports them.
        ends: last character of each token. Blanks that a control token has swallowed are not part of it.
        control: (token, first, last) of each control token, without swallowed blanks.
    """

    length: int
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    control: tuple[tuple[int, int, int], ...]


class EncodedText:
    """The token ids of a text, and the characters that each token covers.

    Attributes:
        ids: token ids.
        control: {index of a control token: (first, last) character}.
    """

    def __init__(self, words: Sequence[CachedWord]) -> None:
        self._words = words
        ids = [word.ids for word in words]
        self._first_characters = list(accumulate([word.length for word in words], initial=0))
        self._first_tokens = list(accumulate(map(len, ids), initial=0))
        self.ids: list[int] = list(chain.from_iterable(ids))
        self.control: dict[int, tuple[int, int]] = {
            first + token: (offset + start, offset + end)
            for word, first, offset in zip(words, self._first_tokens, self._first_characters, strict=False)
            for token, start, end in word.control
        }

    def tokens_before(self, character: int) -> int:
        """Return how many tokens end at or before a character."""
        word = min(bisect_right(self._first_characters, character), len(self._words)) - 1
        offset = character - self._first_characters[word]
        return self._first_tokens[word] + bisect_right(self._words[word].ends, offset)

    def starts_token_at(self, token: int, character: int) -> bool:
        """Return whether a token begins at or after a character, and the previous token reaches up to it."""
        span = self.control.get(token) or (self._span(token) if token < len(self.ids) else (character, character))
        return span[0] >= character and (token == 0 or self._span(token - 1)[1] >= character)

    def _span(self, token: int) -> tuple[int, int]:
        word = bisect_right(self._first_tokens, token) - 1
        offset, (first, last) = self._first_characters[word], self._words[word].spans[token - self._first_tokens[word]]
        return offset + first, offset + last


class CachedEncoder:
    """Encodes texts and caches the words.

    Args:
        backend: a `tokenizers.Tokenizer`.
        control_ids: the ids of its control tokens.
    """

    def __init__(self, backend: Any, control_ids: Collection[int]) -> None:
        self._backend = backend
        self._control_ids = control_ids
        self._by_words = can_encode_by_words(backend)
        # Two generations: when the new one is full, it becomes the old one, and words only in the old one are dropped.
        self._new: dict[str, CachedWord] = {}
        self._old: dict[str, CachedWord] = {}

    def encode(self, text: str) -> EncodedText:
        """Encode a text; raise RowProblem if it has characters that are not Unicode."""
        if not self._by_words:
            return EncodedText([self._encode_piece(text)])
        if len(self._new) >= _CACHE_SIZE:
            self._new, self._old = {}, self._new
        cached = self._new.get
        return EncodedText([cached(piece) or self._look_up(piece) for piece in _CUTS.split(text)])

    def _look_up(self, text: str) -> CachedWord:
        word = self._old.get(text) or self._encode_piece(text)
        if len(text) <= _MAX_CACHED_LENGTH:
            self._new[text] = word
        return word

    def _encode_piece(self, text: str) -> CachedWord:
        try:
            encoding = self._backend.encode(text, add_special_tokens=False)
        except TypeError as error:  # half of a surrogate pair, which JSON can contain
            raise RowProblem("has characters that are not Unicode", repr(text[:80]), code="not-unicode") from error
        ids, spans = tuple(encoding.ids), tuple(encoding.offsets)
        ends = [last for _, last in spans]
        control = []
        for index in (index for index, token in enumerate(ids) if token in self._control_ids):
            first, last = spans[index]  # some control tokens swallow the blanks around them
            matched = text[first:last]
            first, last = first + len(matched) - len(matched.lstrip()), first + len(matched.rstrip())
            control.append((index, first, last))
            ends[index] = last
        return CachedWord(len(text), ids, spans, tuple(ends), tuple(control))


def can_encode_by_words(backend: Any) -> bool:
    """Return whether a tokenizer gives the same ids if a text is cut at single spaces and the pieces are encoded alone.

    This holds for byte-level BPE that splits words by a known pattern, unless an added token contains such a space or
    depends on the characters next to it.
    """
    model, normalizer = backend.model, _state(backend.normalizer)
    # A normalizer may look across a space; NFC, which composes letters, does not.
    if type(model).__name__ != "BPE" or (normalizer or {"type": "NFC"}) != {"type": "NFC"} or model.dropout:
        return False
    if (
        model.continuing_subword_prefix
        or model.end_of_word_suffix
        or split_patterns(backend.pre_tokenizer) not in KNOWN_PATTERNS
    ):
        return False
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return False
    return not any(_SPACE_AFTER_CHARACTER.search(token.content) for token in added) and not _shifts_offsets(backend)


def _shifts_offsets(backend: Any) -> bool:
    """Return whether the reported span of a text's first token differs from its span inside another text."""
    steps = single_steps(_state(backend.post_processor), "processors")
    return any(s["type"] == "ByteLevel" and s["trim_offsets"] and s["add_prefix_space"] for s in steps)


def _state(part: Any) -> Any:
    """Return the settings of a part of a tokenizer."""
    return json.loads(part.__getstate__()) if part is not None else None
