"""Texts to ids, word by word where the tokenizer itself works so: what it made of a word before is remembered.

Most tokenizers of today cut a text into words by a fixed rule and encode each by itself. Rows of one data set are made
of the same words, and looking them up takes a fraction of the time. The rules are not written down here a second time:
a text is cut only at single blanks between characters that are none, where no known rule has a word that reaches over,
and each piece is what the tokenizer makes of it. Tokenizers that are not known to work so get every text whole.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

# Characters that no tokenizer takes for blanks, whatever version of Unicode it knows.
_CUTS = re.compile(r"(?<=[\w!-~])(?= [\w!-~])")
_AFTER = re.compile(r"\S ")
_MOST_PIECES = 2**15
_LONGEST = 64  # characters of a piece that is remembered
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_MARKS, _BLANKS = r" ?[^\s\p{L}\p{N}]+", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# Rules of Llama 3, of Qwen 2, and o200k (gpt-oss, Llama 4), beside GPT-2's, which has a name of its own. A blank behind
# another character always begins a word.
KNOWN_SPLIT_PATTERNS = (
    rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_MARKS}[\r\n]*|{_BLANKS}",
    rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}|{_MARKS}[\r\n]*|{_BLANKS}",
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_MARKS}[\r\n/]*|{_BLANKS}",
)


class CachedWord(NamedTuple):
    """A stretch of text and its tokens.

    `ends` are where the tokens end, `spans` where they stand as the tokenizer tells it. `control` lists (token, first,
    last) of control tokens, without the blanks around them that some swallow; `ends` knows that too.
    """

    length: int
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    control: tuple[tuple[int, int, int], ...]


class EncodedText:
    """An encoded text: its ids, and where tokens stand. `control` says that of control tokens, by their place."""

    def __init__(self, pieces: Sequence[CachedWord]) -> None:
        self._pieces = pieces
        ids = [piece.ids for piece in pieces]
        self._begins = list(accumulate([piece.length for piece in pieces], initial=0))
        self._firsts = list(accumulate(map(len, ids), initial=0))
        self.ids: list[int] = list(chain.from_iterable(ids))
        self.control: dict[int, tuple[int, int]] = {
            first + token: (begin + start, begin + end)
            for piece, first, begin in zip(pieces, self._firsts, self._begins, strict=False)
            if piece.control
            for token, start, end in piece.control
        }

    def tokens_before(self, edge: int) -> int:
        """Return how many tokens end at a character or before it."""
        place = min(bisect_right(self._begins, edge), len(self._pieces)) - 1
        if place < 0:
            return 0
        return self._firsts[place] + bisect_right(self._pieces[place].ends, edge - self._begins[place])

    def starts_token_at(self, token: int, edge: int) -> bool:
        """Say whether a token begins at a character or after it, and the one before reaches up to it."""
        first, _ = self.control.get(token) or (self._span(token) if token < len(self.ids) else (edge, edge))
        return first >= edge and (token == 0 or self._span(token - 1)[1] >= edge)

    def _span(self, token: int) -> tuple[int, int]:
        place = bisect_right(self._firsts, token) - 1
        begin, (first, last) = self._begins[place], self._pieces[place].spans[token - self._firsts[place]]
        return begin + first, begin + last


class CachedEncoder:
    """Encodes texts, and remembers their pieces.

    Args:
        backend: of the tokenizers library.
        control_ids: which of its ids are control tokens.
    """

    def __init__(self, backend: Any, control_ids: Collection[int]) -> None:
        self._backend = backend
        self._control_ids = control_ids
        self._by_words = can_encode_by_words(backend)
        # Two generations: when the younger is full, what has not been met since the last time is forgotten.
        self._young: dict[str, CachedWord] = {}
        self._old: dict[str, CachedWord] = {}

    def encode(self, text: str) -> EncodedText:
        """Return a text encoded; raise TypeError where it has characters that are not Unicode."""
        if not self._by_words:
            return EncodedText([self._piece(text)])
        if len(self._young) >= _MOST_PIECES:
            self._young, self._old = {}, self._young
        known = self._young.get
        return EncodedText([known(one) or self._recalled(one) for one in _CUTS.split(text)])

    def _recalled(self, text: str) -> CachedWord:
        piece = self._old.get(text) or self._piece(text)
        if len(text) <= _LONGEST:
            self._young[text] = piece
        return piece

    def _piece(self, text: str) -> CachedWord:
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids, spans = tuple(encoding.ids), tuple(encoding.offsets)
        ends = [last for _, last in spans]
        control = []
        for token in (i for i, one in enumerate(ids) if one in self._control_ids):
            first, last = spans[token]  # some control tokens swallow the blanks beside them
            matched = text[first:last]
            first, last = first + len(matched) - len(matched.lstrip()), first + len(matched.rstrip())
            control.append((token, first, last))
            ends[token] = last
        return CachedWord(len(text), ids, spans, tuple(ends), tuple(control))


def can_encode_by_words(backend: Any) -> bool:
    """Say whether a tokenizer gives the same ids where a text is cut at single blanks and its pieces are encoded alone.

    So it is with byte-level BPE whose words are cut by a known rule, unless an added token holds such a blank or looks
    at what stands beside it.
    """
    model, normalizer = backend.model, _state(backend.normalizer)
    # A normalizer may look beyond a blank; composing letters does not.
    if type(model).__name__ != "BPE" or (normalizer or {"type": "NFC"}) != {"type": "NFC"} or model.dropout:
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix or not _cuts_by_a_known_rule(backend.pre_tokenizer):
        return False
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return False
    return not any(_AFTER.search(token.content) for token in added) and not _shifts(backend)


def _cuts_by_a_known_rule(pre_tokenizer: Any) -> bool:
    state = _state(pre_tokenizer)
    match [step["type"] for step in _steps(state, "pretokenizers")]:
        case ["ByteLevel"] | ["Digits", "ByteLevel"]:
            return _is_bare(_steps(state, "pretokenizers")[-1], use_regex=True)
        case ["Split", "ByteLevel"]:
            rule, bytes_of = _steps(state, "pretokenizers")
            known = (
                rule["pattern"].get("Regex") in KNOWN_SPLIT_PATTERNS
                and rule["behavior"] == "Isolated"
                and not rule["invert"]
            )
            return known and _is_bare(bytes_of, use_regex=False)
    return False


def _is_bare(byte_level: dict[str, Any], *, use_regex: bool) -> bool:
    return byte_level["use_regex"] == use_regex and not byte_level["add_prefix_space"]


def _shifts(backend: Any) -> bool:
    """Say whether the first token of a text is told to begin elsewhere than it would within another text."""
    steps = _steps(_state(backend.post_processor), "processors")
    return any(s["type"] == "ByteLevel" and s["trim_offsets"] and s["add_prefix_space"] for s in steps)


def _steps(state: Any, name: str) -> list[dict[str, Any]]:
    if not state:
        return []
    return list(state[name]) if state["type"] == "Sequence" else [state]


def _state(part: Any) -> Any:
    """Return the settings of a part of a tokenizer."""
    return json.loads(part.__getstate__()) if part is not None else None
