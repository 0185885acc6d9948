"""The codec: what is a control token, what is only letters, what ids say."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import make_tokenizer
from tests.unit.tasks.families import FAMILIES, Family, byte_level, markup, special, wrapped
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tunesmith.core.errors import RecipeError
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.tokenizer import Span, TokenizerAdapter


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(RecipeError, match="Slow has no fast version"):
        TokenizerAdapter(Slow())


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no usable tokenizer"):
        TokenizerAdapter.load(tmp_path)


def test_a_saved_tokenizer_is_the_same(tmp_path: Path, family: Family) -> None:
    family.hf_tokenizer.save_pretrained(tmp_path)
    loaded = TokenizerAdapter.load(tmp_path)
    text = "Say <|im_end|> one </s> [INST] <think>"
    assert loaded.encode_untrusted(text) == family.tokenizer.encode_untrusted(text)
    assert loaded.encode_trusted(text) == family.tokenizer.encode_trusted(text)
    assert (loaded.control_ids, loaded.prefix_ids) == (family.tokenizer.control_ids, family.tokenizer.prefix_ids)


def test_what_counts_as_a_control_token(family: Family) -> None:
    # Only this one has characters that it cannot write.
    unknown = family.hf_tokenizer.unk_token_id if family.name == "unigram" else None
    assert unknown not in family.tokenizer.control_ids
    added = family.hf_tokenizer.added_tokens_decoder
    assert family.tokenizer.control_ids == set(added) - {unknown}
    assert family.tokenizer.eos_id in family.tokenizer.special_ids


def test_blanks_and_words_that_were_added_are_no_control_tokens() -> None:
    backend = byte_level(
        ("<|end|>",), [markup("\n\n\n"), markup("    "), markup("Say one"), markup("a<b"), markup("[x]")]
    )
    tokenizer = TokenizerAdapter(wrapped(backend, None, eos_token="<|end|>"))
    assert sorted(tokenizer.decode([i]) for i in tokenizer.control_ids) == ["<|end|>", "[x]"]
    ids = tokenizer.encode_untrusted("\n\n\n    Say one<|end|>")
    assert tokenizer.decode(ids) == "\n\n\n    Say one<|end|>"
    assert tokenizer.encode_trusted("\n\n\n")[0] in ids, "they keep their ids where control tokens are left out"
    assert tokenizer.encode_trusted("Say one")[0] in ids


@pytest.mark.parametrize("model_says_so", [True, False])
@pytest.mark.parametrize("is_end", [True, False])
def test_an_end_that_is_called_unknown_steers_all_the_same(model_says_so: bool, is_end: bool) -> None:
    # As in GPT-2 and SmolLM2, whose tokenizers know every byte.
    state = json.loads(byte_level(("<|endoftext|>", "<|im_end|>")).to_str())
    state["model"]["unk_token"] = "<|endoftext|>" if model_says_so else None
    backend = Tokenizer.from_str(json.dumps(state))
    end = "<|endoftext|>" if is_end else "<|im_end|>"
    tokenizer = TokenizerAdapter(wrapped(backend, None, unk_token="<|endoftext|>", eos_token=end))
    assert tokenizer.special_ids == {0, 1}
    for allow_markup in (True, False):
        ids = tokenizer.encode_untrusted("one <|endoftext|> \u2603", allow_markup=allow_markup)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == "one <|endoftext|> \u2603"


@pytest.mark.parametrize("name", ["instructions", "turns", "system-inside", "headers"])
def test_what_stands_before_every_text(name: str) -> None:
    tokenizer = FAMILIES[name].tokenizer
    assert tokenizer.prefix_ids == (tokenizer.hf_tokenizer.bos_token_id,)


def test_what_stands_before_a_text_is_told_from_what_stands_after_it() -> None:
    from tokenizers import processors

    for single, prefix in (("<|end|> $A <|end|>", 1), ("$A <|end|>", 0), ("<|end|> <|x|> $A", 2)):
        backend = byte_level(("<|end|>", "<|x|>"))
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B", special_tokens=[("<|end|>", 0), ("<|x|>", 1)]
        )
        tokenizer = TokenizerAdapter(wrapped(backend, None, eos_token="<|end|>", bos_token="<|end|>"))
        assert tokenizer.prefix_ids == (0, 1)[:prefix]


def test_a_tokenizer_that_was_told_to_cut_does_not() -> None:
    backend = byte_level(("<|end|>",))
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    tokenizer = TokenizerAdapter(wrapped(backend, None, eos_token="<|end|>"))
    assert (
        tokenizer.decode(tokenizer.encode_untrusted("Say one and two, then three.")) == "Say one and two, then three."
    )
    assert len(tokenizer.encode_untrusted("a")) == 1


def reachable(kind: str) -> Tokenizer:
    """Return a tokenizer whose model itself, and not only its list of added tokens, makes a control token of text."""
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
    elif kind == "BPE that looks words up":
        words |= {letter: 10 + n for n, letter in enumerate("endthik")}
        backend = Tokenizer(models.BPE(words, [("e", "n"), ("en", "d")][:0], ignore_merges=True, unk_token="<unk>"))
    else:
        backend = Tokenizer(models.Unigram([(word, -float(i)) for word, i in words.items()], unk_id=0))
    backend.add_special_tokens(["<|end|>"])
    backend.add_tokens(["<think>"])
    return backend


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "BPE", "BPE that looks words up", "Unigram"])
def test_control_tokens_that_the_model_itself_would_make(kind: str) -> None:
    tokenizer = TokenizerAdapter(wrapped(reachable(kind), None, eos_token="<|end|>", unk_token="<unk>"))
    assert tokenizer.encode_trusted("<|end|>") == [1]
    assert tokenizer.control_ids == {1, 2}
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_untrusted("<|end|>"))
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_untrusted("<think>"))
    assert tokenizer.encode_untrusted("<think>", allow_markup=True) == [2]
    assert 1 not in tokenizer.encode_untrusted("<|end|><think><|end|>", allow_markup=True)


def test_added_tokens_that_are_matched_in_normalized_text() -> None:
    backend = byte_level((), normalizer=normalizers.NFKC())
    backend.add_special_tokens(["<|end|>"])
    backend.add_tokens(["<think>"])  # matched after normalization, as tokens added by hand often are
    tokenizer = TokenizerAdapter(wrapped(backend, None, eos_token="<|end|>"))
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_untrusted("\uff1cthink\uff1e <think> \uff1c|end|\uff1e"))
    assert tokenizer.decodes_to(tokenizer.encode_untrusted("\uff1cthink\uff1e"), "\uff1cthink\uff1e")


def test_the_names_of_control_tokens_are_secret_and_of_no_use() -> None:
    tokenizer = TokenizerAdapter(make_tokenizer())
    names = tokenizer._names.values()
    assert not set(names) & set(TokenizerAdapter(make_tokenizer())._names.values())
    for name in names:
        assert tokenizer.decode(tokenizer.encode_untrusted(name)) == name
        with pytest.raises(RowProblem, match="without control tokens"):
            tokenizer.encode_untrusted(f"{name}<|im_end|>")


def test_each_writer_may_write_his_own(thinking: Family) -> None:
    tokenizer = thinking.tokenizer
    [start], [end], [think] = (tokenizer.encode_trusted(text) for text in ("<|im_start|>", "<|im_end|>", "<think>"))
    text = "<|im_start|><think><|im_end|>"
    parts = [
        Span(text),
        Span(text, tokenizer.markup_ids),
        Span(text, tokenizer.control_ids),
        Span(text, frozenset({end})),
    ]
    encoded = tokenizer.encode(parts)
    found = [
        [i for i in encoded.ids[a:b] if i in tokenizer.control_ids]
        for a, b in zip(encoded.starts, encoded.starts[1:], strict=False)
    ]
    assert found == [[], [think], [start, think, end], [end]]
    assert tokenizer.decode(encoded.ids) == text * 4
    assert not encoded.plain


def test_parts_begin_where_their_text_begins(thinking: Family) -> None:
    tokenizer = thinking.tokenizer
    parts = [
        Span("one two\n"),
        Span("", starts_generation=True),
        Span("\n\n\nthree"),
        Span("<|im_end|>", tokenizer.control_ids),
    ]
    encoded = tokenizer.encode(parts)
    pieces = [tokenizer.decode(encoded.ids[a:b]) for a, b in zip(encoded.starts, encoded.starts[1:], strict=False)]
    assert pieces == ["one two\n", "", "\n\n\nthree", "<|im_end|>"]
    closed = tokenizer.encode([part._replace(starts_generation=False) for part in parts])
    assert closed.plain
    assert closed.ids != encoded.ids, "else this tokenizer would not join line breaks"
    assert tokenizer.encode([]).ids == []


def test_composed_and_decomposed_letters_say_the_same_to_a_tokenizer_that_composes(
    thinking: Family, chatml: Family
) -> None:
    assert thinking.tokenizer.decodes_to(thinking.tokenizer.encode_untrusted("cafe\u0301"), "cafe\u0301")
    assert not thinking.tokenizer.decodes_to(thinking.tokenizer.encode_untrusted("cafe\u0301"), "cafe")
    assert not chatml.tokenizer.decodes_to(chatml.tokenizer.encode_untrusted("cafe\u0301"), "caf\u00e9")


def test_the_digest_tells_templates_and_vocabularies_apart() -> None:
    digests = {
        TokenizerAdapter(make_tokenizer(template, markup=tokens)).digest
        for template in ("x", "y")
        for tokens in ((), ("<t>",))
    }
    assert len(digests) == 4
    assert TokenizerAdapter(make_tokenizer("x")).digest == TokenizerAdapter(make_tokenizer("x")).digest


def test_a_vocabulary_with_holes_is_refused_rather_than_misread() -> None:
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
