"""TokenizerAdapter: control tokens, text of several authors, and comparison of decoded ids."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises, row_problem
from tests.support.tiny import make_tokenizer
from tests.unit.tasks.families import FAMILIES, Family, byte_level, markup, special, wrapped
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tunesmith.core.errors import RecipeError
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.tokenizer import Span, TokenizerAdapter


def test_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with raises(RecipeError, "slow-tokenizer", "Slow"):
        TokenizerAdapter(Slow())


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with raises(RecipeError, "no-tokenizer", "tokenizer.json", where=str(tmp_path)):
        TokenizerAdapter.load(tmp_path)


def test_saved_tokenizer_loads_as_the_same(tmp_path: Path, family: Family) -> None:
    family.hf_tokenizer.save_pretrained(tmp_path)
    loaded = TokenizerAdapter.load(tmp_path)
    text = "Say <|im_end|> one </s> [INST] <think>"
    assert loaded.encode_untrusted(text) == family.tokenizer.encode_untrusted(text)
    assert loaded.encode_trusted(text) == family.tokenizer.encode_trusted(text)
    assert (loaded.control_ids, loaded.prefix_ids) == (family.tokenizer.control_ids, family.tokenizer.prefix_ids)


def test_control_tokens_are_all_added_ones_except_unknown(family: Family) -> None:
    # Only this family has characters that it cannot encode.
    unknown = family.hf_tokenizer.unk_token_id if family.name == "unigram" else None
    assert unknown not in family.tokenizer.control_ids
    added = family.hf_tokenizer.added_tokens_decoder
    assert family.tokenizer.control_ids == set(added) - {unknown}
    assert family.tokenizer.eos_id in family.tokenizer.special_ids


def test_added_blanks_and_words_are_not_control_tokens() -> None:
    backend = byte_level(
        ("<|end|>",), [markup("\n\n\n"), markup("    "), markup("Say one"), markup("a<b"), markup("[x]")]
    )
    tokenizer = TokenizerAdapter(wrapped(backend, None, eos_token="<|end|>"))
    assert sorted(tokenizer.decode([i]) for i in tokenizer.control_ids) == ["<|end|>", "[x]"]
    ids = tokenizer.encode_untrusted("\n\n\n    Say one<|end|>")
    assert tokenizer.decode(ids) == "\n\n\n    Say one<|end|>"
    assert tokenizer.encode_trusted("\n\n\n")[0] in ids, "their ids are the same in untrusted text"
    assert tokenizer.encode_trusted("Say one")[0] in ids


@pytest.mark.parametrize("in_model", [True, False])
@pytest.mark.parametrize("is_end", [True, False])
def test_unknown_token_of_a_byte_level_tokenizer_is_a_control_token(in_model: bool, is_end: bool) -> None:
    # As in GPT-2 and SmolLM2, whose tokenizers encode every byte.
    state = json.loads(byte_level(("<|endoftext|>", "<|im_end|>")).to_str())
    state["model"]["unk_token"] = "<|endoftext|>" if in_model else None
    backend = Tokenizer.from_str(json.dumps(state))
    end = "<|endoftext|>" if is_end else "<|im_end|>"
    tokenizer = TokenizerAdapter(wrapped(backend, None, unk_token="<|endoftext|>", eos_token=end))
    assert tokenizer.special_ids == {0, 1}
    for allow_markup in (True, False):
        ids = tokenizer.encode_untrusted("one <|endoftext|> \u2603", allow_markup=allow_markup)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == "one <|endoftext|> \u2603"


@pytest.mark.parametrize("name", ["instructions", "turns", "system-inside", "headers"])
def test_prefix_ids_are_bos(name: str) -> None:
    tokenizer = FAMILIES[name].tokenizer
    assert tokenizer.prefix_ids == (tokenizer.hf_tokenizer.bos_token_id,)


def test_prefix_ids_exclude_special_tokens_after_the_text() -> None:
    from tokenizers import processors

    for single, prefix in (("<|end|> $A <|end|>", 1), ("$A <|end|>", 0), ("<|end|> <|x|> $A", 2)):
        backend = byte_level(("<|end|>", "<|x|>"))
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B", special_tokens=[("<|end|>", 0), ("<|x|>", 1)]
        )
        tokenizer = TokenizerAdapter(wrapped(backend, None, eos_token="<|end|>", bos_token="<|end|>"))
        assert tokenizer.prefix_ids == (0, 1)[:prefix]


def test_truncation_and_padding_of_the_tokenizer_are_disabled() -> None:
    backend = byte_level(("<|end|>",))
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    tokenizer = TokenizerAdapter(wrapped(backend, None, eos_token="<|end|>"))
    assert (
        tokenizer.decode(tokenizer.encode_untrusted("Say one and two, then three.")) == "Say one and two, then three."
    )
    assert len(tokenizer.encode_untrusted("a")) == 1


def reachable(kind: str) -> Tokenizer:
    """Return a tokenizer whose model itself, besides its list of added tokens, encodes text to a control token."""
    words = {"<unk>": 0, "<|end|>": 1, "<think>": 2, "Say": 3, "<": 4, "|": 5, "end": 6, ">": 7, "think": 8, "</s>": 9}
    if kind == "WordLevel":
        backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "WordPiece":
        pieces = {
            "<unk>": 0,
            "<|end|>": 1,
            "<think>": 2,
            "Say": 3,
            "<": 4,
            "##|": 5,
            "##end": 6,
            "##>": 7,
            "##think": 8,
        }
        backend = Tokenizer(models.WordPiece(pieces, unk_token="<unk>"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    elif kind == "BPE":
        words |= {"e": 10, "n": 11, "d": 12, "en": 13, "<|": 14, "<|end": 15, "<|end|": 16}
        merges = [("e", "n"), ("en", "d"), ("<", "|"), ("<|", "end"), ("<|end", "|"), ("<|end|", ">")]
        backend = Tokenizer(models.BPE(words, merges, unk_token="<unk>"))
    elif kind == "BPE with ignore_merges":
        words |= {letter: 10 + n for n, letter in enumerate("endthik")}
        backend = Tokenizer(models.BPE(words, [("e", "n"), ("en", "d")][:0], ignore_merges=True, unk_token="<unk>"))
    else:
        backend = Tokenizer(models.Unigram([(word, -float(i)) for word, i in words.items()], unk_id=0))
    backend.add_special_tokens(["<|end|>"])
    backend.add_tokens(["<think>"])
    return backend


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "BPE", "BPE with ignore_merges", "Unigram"])
def test_control_tokens_of_the_models_vocabulary_are_plain_text(kind: str) -> None:
    tokenizer = TokenizerAdapter(wrapped(reachable(kind), None, eos_token="<|end|>", unk_token="<unk>"))
    assert tokenizer.encode_trusted("<|end|>") == [1]
    assert tokenizer.control_ids == {1, 2}
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_untrusted("<|end|>"))
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_untrusted("<think>"))
    assert tokenizer.encode_untrusted("<think>", allow_markup=True) == [2]
    assert 1 not in tokenizer.encode_untrusted("<|end|><think><|end|>", allow_markup=True)


def test_added_tokens_matched_in_normalized_text_are_plain_text() -> None:
    backend = byte_level((), normalizer=normalizers.NFKC())
    backend.add_special_tokens(["<|end|>"])
    backend.add_tokens(["<think>"])  # matched after normalization, as tokens added by hand often are
    tokenizer = TokenizerAdapter(wrapped(backend, None, eos_token="<|end|>"))
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_untrusted("\uff1cthink\uff1e <think> \uff1c|end|\uff1e"))
    assert tokenizer.decodes_to(tokenizer.encode_untrusted("\uff1cthink\uff1e"), "\uff1cthink\uff1e")


def test_random_names_of_control_tokens_cannot_be_forged() -> None:
    tokenizer = TokenizerAdapter(make_tokenizer())
    names = tokenizer._random_names.values()
    assert not set(names) & set(TokenizerAdapter(make_tokenizer())._random_names.values())
    for name in names:
        assert tokenizer.decode(tokenizer.encode_untrusted(name)) == name
        with row_problem("control-token"):
            tokenizer.encode_untrusted(f"{name}<|im_end|>")


def test_span_emits_only_its_allowed_control_ids(thinking: Family) -> None:
    tokenizer = thinking.tokenizer
    [start], [end], [think] = (tokenizer.encode_trusted(text) for text in ("<|im_start|>", "<|im_end|>", "<think>"))
    text = "<|im_start|><think><|im_end|>"
    spans = [
        Span(text),
        Span(text, tokenizer.markup_ids),
        Span(text, tokenizer.control_ids),
        Span(text, frozenset({end})),
    ]
    encoded = tokenizer.encode(spans)
    emitted = [
        [i for i in encoded.ids[a:b] if i in tokenizer.control_ids]
        for a, b in zip(encoded.starts, encoded.starts[1:], strict=False)
    ]
    assert emitted == [[], [think], [start, think, end], [end]]
    assert tokenizer.decode(encoded.ids) == text * 4
    assert not encoded.is_unchanged


def test_starts_are_the_first_tokens_of_spans(thinking: Family) -> None:
    tokenizer = thinking.tokenizer
    spans = [
        Span("one two\n"),
        Span("", starts_generation=True),
        Span("\n\n\nthree"),
        Span("<|im_end|>", tokenizer.control_ids),
    ]
    encoded = tokenizer.encode(spans)
    pieces = [tokenizer.decode(encoded.ids[a:b]) for a, b in zip(encoded.starts, encoded.starts[1:], strict=False)]
    assert pieces == ["one two\n", "", "\n\n\nthree", "<|im_end|>"]
    unsplit = tokenizer.encode([span._replace(starts_generation=False) for span in spans])
    assert unsplit.is_unchanged
    assert unsplit.ids != encoded.ids, "otherwise the tokenizer does not merge line breaks"
    assert tokenizer.encode([]).ids == []


def test_decodes_to_ignores_composition_if_the_tokenizer_composes(thinking: Family, chatml: Family) -> None:
    assert thinking.tokenizer.decodes_to(thinking.tokenizer.encode_untrusted("cafe\u0301"), "cafe\u0301")
    assert not thinking.tokenizer.decodes_to(thinking.tokenizer.encode_untrusted("cafe\u0301"), "cafe")
    assert not chatml.tokenizer.decodes_to(chatml.tokenizer.encode_untrusted("cafe\u0301"), "caf\u00e9")


def test_digest_depends_on_template_and_vocabulary() -> None:
    digests = {
        TokenizerAdapter(make_tokenizer(template, markup=tokens)).digest
        for template in ("x", "y")
        for tokens in ((), ("<t>",))
    }
    assert len(digests) == 4
    assert TokenizerAdapter(make_tokenizer("x")).digest == TokenizerAdapter(make_tokenizer("x")).digest


def test_vocabulary_with_missing_ids_is_refused_or_encoded_correctly() -> None:
    state: dict[str, Any] = json.loads(byte_level(("<|end|>",), [special("<|x|>"), markup("<t>")]).to_str())
    del state["model"]["vocab"]["<|end|>"]
    backend = Tokenizer.from_str(json.dumps(state))
    tokenizer = TokenizerAdapter(wrapped(backend, None, eos_token="<|x|>"))
    try:
        ids = tokenizer.encode_untrusted("one <|x|> <t> <|end|> two")
    except (RecipeError, RowProblem):
        return
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == "one <|x|> <t> <|end|> two"
