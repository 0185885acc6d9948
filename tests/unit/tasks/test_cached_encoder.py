"""Encoding by words gives the same tokens and offsets as encoding the whole text, and other tokenizers are not cut."""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.tasks.families import byte_level, markup, sentencepiece_bpe, special, unigram
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tunesmith.tasks import cached_encoder
from tunesmith.tasks.cached_encoder import KNOWN_PATTERNS, CachedEncoder, can_encode_by_words

CONTROLS = ("<|im_end|>", "<think>")


PIECES = (
    "one", "two", "Don't", "'s", "12345", ".", "!?", "\n", " ", "  ", "\t", "\u00a0", "\u0301", "e\u0301", "日本", "é",
     "ß", "\u200d", "\x1c", "\u0085", "\u2028", "_", "\U0001f600", "dog", "\r\n", *CONTROLS,
)  # fmt: skip


def greedy(pre_tokenizer: Any, *, normalizer: Any = None, late: Sequence[AddedToken] = ()) -> Tokenizer:
    """Return a tokenizer with merges across words, so that only its pre-tokenizer keeps words apart."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=[CONTROLS[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    generator = random.Random(0)
    texts = ["".join(generator.choices((*PIECES[:-2], " ", " ", " "), k=6)) for _ in range(300)]
    across_words = [f"{word}{blanks}" for word in (".", "!?", "one", "12345") for blanks in ("\n", " ", "  ", " \n")]
    backend.train_from_iterator([*texts, *across_words * 100], trainer)
    backend.pre_tokenizer, backend.normalizer = pre_tokenizer, normalizer
    backend.add_tokens([markup(CONTROLS[1]), *late])
    return backend


def byte_level_after(*steps: Any, use_regex: bool) -> Any:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*steps, last])


def with_pattern(*patterns: str) -> Tokenizer:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return greedy(byte_level_after(*steps, use_regex=False))


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
KNOWN: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: greedy(GPT2, late=[AddedToken("dog", normalized=True)]),
    "composing": lambda: greedy(GPT2, normalizer=normalizers.NFC()),
    "digits": lambda: greedy(byte_level_after(DIGITS, use_regex=True), late=[markup("   ")]),
    **{f"pattern {i}": partial(with_pattern, *patterns) for i, patterns in enumerate(KNOWN_PATTERNS)},
}
TEXTS = st.lists(st.sampled_from(PIECES) | st.just(" ") | st.characters(exclude_categories=["Cs"]), max_size=30).map(
    "".join
)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
@given(texts=st.lists(TEXTS, max_size=2))
@settings(max_examples=50, deadline=None)
def test_encoding_by_words_equals_encoding_the_whole_text(name: str, texts: list[str]) -> None:
    backend = BUILT.setdefault(name, KNOWN[name]())
    controls = {backend.token_to_id(token) for token in CONTROLS}
    by_words, whole_texts = CachedEncoder(backend, controls), CachedEncoder(backend, controls)
    assert can_encode_by_words(backend)
    whole_texts._by_words = False
    for text in [*texts, *texts]:  # the second time from the cache
        encoded, whole = by_words.encode(text), whole_texts.encode(text)
        own = backend.encode(text, add_special_tokens=False)
        assert encoded.ids == whole.ids == own.ids
        assert encoded.control == whole.control
        assert {i for i, token in enumerate(own.ids) if token in controls} == set(encoded.control)
        ends = [last for _, last in own.offsets]
        for edge in range(len(text) + 1):
            assert encoded.tokens_before(edge) == whole.tokens_before(edge) == bisect_right(ends, edge)
            for token in range(len(own.ids) + 1):
                assert encoded.starts_token_at(token, edge) == whole.starts_token_at(token, edge)


BUILT: dict[str, Tokenizer] = {}


@pytest.mark.parametrize("name", KNOWN)
def test_words_are_never_cut(name: str) -> None:
    backend = BUILT.setdefault(name, KNOWN[name]())
    encoder = CachedEncoder(backend, ())
    for left, right in product((*PIECES, ".", "!?", "one", "12345"), (*PIECES, " one", " .", " \n", "  one", "\n\n")):
        for text in (f"{left}{right}", f"two {left}{right}two", f"{left} {right}", f"{left}{right}{left}"):
            assert encoder.encode(text).ids == backend.encode(text, add_special_tokens=False).ids, repr(text)


def test_dropped_words_are_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_encoder, "_CACHE_SIZE", 3)
    backend = KNOWN["gpt2"]()
    encoder = CachedEncoder(backend, ())
    for i in range(50):
        text = f"Say one and two, then red {i % 7} cat {i}"
        assert encoder.encode(text).ids == backend.encode(text).ids
    assert len(encoder._new) + len(encoder._old) < 30


def changed(**parts: Any) -> Tokenizer:
    backend = byte_level(("<|end|>",))
    for name, value in parts.items():
        setattr(backend, name, value)
    return backend


@pytest.mark.parametrize(
    "backend",
    [
        byte_level(("<|end|>",), [special("<x>", lstrip=True)]),
        byte_level(("<|end|>",), [special("<x>", rstrip=True)]),
        byte_level(("<|end|>",), [AddedToken("one", single_word=True)]),
        byte_level(("<|end|>",), [markup("one two")]),
        byte_level(("<|end|>",), [markup("one ")]),
        byte_level(("<|end|>",), lines_whole=True),
        byte_level(("<|end|>",), normalizer=normalizers.Lowercase()),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        changed(pre_tokenizer=None),
        changed(post_processor=processors.ByteLevel(add_prefix_space=True, trim_offsets=True)),
        changed(model=models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5)),
        changed(model=models.WordPiece({"a": 0, "[UNK]": 1})),
        sentencepiece_bpe(["<s>"], style="normalizer", prefix="<s>"),
        unigram(["</s>"]),
    ],
)
def test_other_tokenizers_encode_texts_whole(backend: Tokenizer) -> None:
    assert not can_encode_by_words(backend)
    assert len(CachedEncoder(backend, ()).encode("one two three")._words) == 1
