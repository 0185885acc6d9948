"""Properties of conversations with random text: answers are trained, and only the template emits control tokens."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.support.errors import row_problem
from tests.unit.tasks.families import CORPUS, FAMILIES, Family, conversation

quick = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))

ODD = (
    "\r\n",
    "\n\n",
    "  ",
    "\t",
    "\x00",
    "\u00a0",
    "\u200b",
    "\ufeff",
    "\u2028",
    "e\u0301",
    "\u0301",
    "\u1112\u1161\u11ab",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u202e",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1eb\U0001f1f7",
    "\uff1cthink\uff1e",
    "{{ messages }}",
    "{% raw %}",
    "{question}",
    "\\n",
    "<|",
    "|>",
    "<",
    ">",
    "[",
    "</",
    "qzplaceholder0xkj",
    "Say",
    " one",
    "cat",
)
CONTROL = sorted({token.content for f in FAMILIES.values() for token in f.hf_tokenizer.added_tokens_decoder.values()})
# SentencePiece writes a space as U+2581, so its tokenizers cannot distinguish the two.
letters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=6)
clean_text = st.lists(st.one_of(letters, st.sampled_from(ODD)), max_size=8).map("".join)
poisoned_text = st.lists(
    st.one_of(letters, st.sampled_from(ODD), st.sampled_from(CONTROL), st.sampled_from([c[:-1] for c in CONTROL])),
    max_size=8,
).map("".join)


def texts(family: Family, *, poisoned: bool) -> st.SearchStrategy[list[str]]:
    text = poisoned_text if poisoned else clean_text
    if family.name == "unigram":  # it cannot encode letters that were not in its corpus
        known = st.text(st.sampled_from(sorted({*"".join(CORPUS)})), max_size=6)
        text = st.lists(
            st.one_of(known, st.sampled_from(["<|im_end|>", "<|im_start|>user\n"])) if poisoned else known, max_size=8
        ).map("".join)
    nonblank = text.filter(lambda text: bool(text.strip()))
    return st.lists(st.tuples(nonblank, nonblank), min_size=1, max_size=3).map(
        lambda pairs: [t for pair in pairs for t in pair]
    )


def is_rendered(family: Family, answer: str, run: str) -> bool:
    """Return whether a trained run is the answer as the template renders it, with its stop token."""
    expected = f"{family.written(answer)}{family.stop}"
    normalizer = family.tokenizer._backend.normalizer
    normalize = (lambda text: normalizer.normalize_str(text)) if family.name == "thinking" else str
    prefixes = {family.answer_prefix, family.answer_prefix.lstrip(" "), ""}
    return normalize(run) in {normalize(prefix + expected) for prefix in prefixes}


@quick
@given(data=st.data())
def test_answers_and_their_stop_tokens_are_trained(family: Family, data: st.DataObject) -> None:
    drawn = data.draw(texts(family, poisoned=True))
    assume(family.name != "thinking" or not any("think>" in text for text in drawn))  # its template moves thoughts
    turns = conversation(*drawn, train_on="all" if family.every_turn_ends else "last")
    tokens, prompt = family.task().render(turns), family.task().encode_prompt(turns)
    runs = family.runs(tokens.input_ids, tokens.trained)
    answers = [turn.text for turn in turns if turn.trained]
    assert len(runs) == len(answers)
    assert all(is_rendered(family, answer, run) for answer, run in zip(answers, runs, strict=True))
    whole = family.tokenizer.decode(tokens.input_ids)
    assert whole.startswith(family.tokenizer.decode(prompt))
    if len(answers) == 1:
        assert list(tokens.input_ids[: len(prompt)]) == prompt
        assert tokens.trained[len(prompt)]


@quick
@given(data=st.data())
def test_ids_equal_transformers_without_control_tokens_in_text(family: Family, data: st.DataObject) -> None:
    drawn = data.draw(texts(family, poisoned=False))
    turns = conversation(*drawn, train_on="last")
    assume(
        not any(token.content in text for text in drawn for token in family.hf_tokenizer.added_tokens_decoder.values())
    )
    tokens = family.task().render(turns)
    own = family.own_ids(turns)
    assert family.tokenizer.decode(tokens.input_ids) == family.tokenizer.decode(own)
    # transformers may merge blanks at the beginning of an answer with the prompt; in generation that cannot happen.
    if not any(answer[:1].isspace() for answer in drawn[1::2]):
        assert family.task().encode_prompt(turns) == family.own_ids(turns[:-1], generation=True)
        assert not family.exact or list(tokens.input_ids) == own


@quick
@given(data=st.data())
def test_only_the_template_emits_control_tokens(family: Family, data: st.DataObject) -> None:
    drawn = data.draw(texts(family, poisoned=True))
    assume(family.name != "thinking" or not any("think>" in text for text in drawn))
    turns = conversation(*drawn, train_on="last")
    ids = family.task().render(turns).input_ids
    frame = family.controls(family.own_ids(conversation(*("x" for _ in drawn))))
    emitted = family.controls(ids)
    special = family.tokenizer.special_ids
    assert [i for i in emitted if i in special] == [i for i in frame if i in special]
    if not any(token in answer for answer in drawn[1::2] for token in CONTROL):
        assert emitted == frame
    # The same for a prompt alone, as on a server.
    frame = family.controls(family.own_ids(conversation(*("x" for _ in drawn))[:-1], generation=True))
    emitted = family.controls(family.task().encode_prompt(turns))
    assert [i for i in emitted if i in special] == [i for i in frame if i in special]


@quick
@given(text=poisoned_text, allow_markup=st.booleans())
def test_untrusted_text_round_trips_without_control_tokens(family: Family, text: str, allow_markup: bool) -> None:
    assume(family.name != "unigram" or family.hf_tokenizer.unk_token_id not in family.tokenizer.encode_untrusted(text))
    tokenizer = family.tokenizer
    ids = tokenizer.encode_untrusted(text, allow_markup=allow_markup)
    assert (tokenizer.special_ids if allow_markup else tokenizer.control_ids).isdisjoint(ids)
    assert tokenizer.decodes_to(ids, text)
    if not any(token in text for token in CONTROL):
        assert ids == family.hf_tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", ["chatml", "instructions"])
@quick
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), min_size=1, max_size=12))
def test_decodes_to_distinguishes_texts(name: str, text: str) -> None:
    tokenizer = FAMILIES[name].tokenizer
    ids = tokenizer.encode_untrusted(text)
    assert tokenizer.decodes_to(ids, text)
    for other in (text + "x", "x" + text, text[:-1], text + "\n", "\n" + text):
        assert not tokenizer.decodes_to(ids, other)


def test_letters_missing_in_the_vocabulary() -> None:
    family = FAMILIES["unigram"]
    turns = conversation("\u00e9\u2603", "one")
    assert list(family.task().render(turns).input_ids) == family.own_ids(turns), "a prompt may contain them"
    with row_problem("decode-mismatch"):
        family.task().render(conversation("one", "\u00e9"))
