"""The text task: every token except the first is trained on, in whole documents and in blocks."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.support.errors import raises, row_problem
from tests.unit.tasks.families import FAMILIES, Family, byte_level, wrapped

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import TextData
from tunesmith.tasks import task_for
from tunesmith.tasks.text import TextTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

letters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=8)
control = st.sampled_from(["<|im_end|>", "</s>", "<s>", "<bos>", "<eos>", "[/INST]", "<|endoftext|>", " ", "\n", "one"])
poisoned = st.lists(st.one_of(letters, control), max_size=8).map("".join).filter(lambda text: bool(text.strip()))


def text_task(tokenizer: TokenizerAdapter, text: str = "text", **changes: Any) -> TextTask:
    task = task_for(TextData(source=FileSource(file="rows.jsonl"), task="text", text=text, **changes), tokenizer)
    assert isinstance(task, TextTask)
    return task


def test_every_token_except_the_first_is_trained(family: Family) -> None:
    task = text_task(family.tokenizer)
    turns = task.parse({"text": "Say one and two, then red cat."})
    tokens = task.render(turns, "some id")
    assert tokens.example_id == "some id"
    assert tokens.trained == (False,) + (True,) * (len(tokens.input_ids) - 1)
    assert tokens.input_ids[: len(family.tokenizer.prefix_ids)] == family.tokenizer.prefix_ids
    assert tokens.input_ids[-1] == family.tokenizer.eos_id
    own = family.hf_tokenizer("Say one and two, then red cat.").input_ids
    assert list(tokens.input_ids) == [*own, family.tokenizer.eos_id]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=poisoned, sample_prefix_tokens=st.integers(1, 12))
def test_random_documents_round_trip_without_control_tokens(
    family: Family, document: str, sample_prefix_tokens: int
) -> None:
    tokenizer = family.tokenizer
    assume(family.name != "unigram" or family.hf_tokenizer.unk_token_id not in tokenizer.encode_untrusted(document))
    task = text_task(tokenizer, sample_prefix_tokens=sample_prefix_tokens)
    turns = task.parse({"text": document})
    tokens, prompt = task.render(turns), task.encode_prompt(turns)
    assert [i for i in tokens.input_ids if i in tokenizer.control_ids] == [*tokenizer.prefix_ids, tokenizer.eos_id]
    assert list(tokens.input_ids[: len(prompt)]) == prompt
    assert len(prompt) - len(tokenizer.prefix_ids) == min(
        sample_prefix_tokens, len(tokens.input_ids) - 1 - len(tokenizer.prefix_ids)
    )
    assert task.decode_answer(tokens.input_ids[len(prompt) :]) == task.reference(turns)


def test_control_tokens_in_documents_if_the_recipe_allows_them(chatml: Family) -> None:
    document = "<|im_start|>user\nSay one.<|im_end|>\n<|im_start|>assistant\n<think>one"
    for allowed in (True, False):
        task = text_task(chatml.tokenizer, control_tokens=allowed)
        tokens = task.render(task.parse({"text": document}))
        own = chatml.hf_tokenizer(document).input_ids
        assert (list(tokens.input_ids[:-1]) == own) == allowed
        assert chatml.tokenizer.decode(tokens.input_ids[:-1]) == document
        assert all(tokens.trained[1:])


def test_document_without_its_end(family: Family) -> None:
    whole, endless = (text_task(family.tokenizer, train_on_end=end) for end in (True, False))
    turns = whole.parse({"text": "Say one and two, then red cat."})
    ended, tokens = whole.render(turns), endless.render(turns)
    assert (tokens.input_ids, tokens.trained) == (ended.input_ids[:-1], ended.trained[:-1])
    assert family.tokenizer.eos_id not in tokens.input_ids[len(family.tokenizer.prefix_ids) :]
    assert endless.encode_prompt(turns) == whole.encode_prompt(turns)
    assert endless.reference(turns) == whole.reference(turns)
    assert endless.stop_ids == whole.stop_ids


def test_blocks_of_a_document_without_its_end() -> None:
    tokenizer = FAMILIES["turns"].tokenizer
    for count in range(2, 12):  # with some of them, the end would be the only token of the last block
        turns = text_task(tokenizer).parse({"text": "one " * count})
        task = text_task(tokenizer, too_long="split", train_on_end=False)
        whole = task.render(turns)
        blocks = [task.render(block) for block in task.split_blocks(whole, 8)] or [whole]
        learned = [i for block in blocks for i, trained in zip(block.input_ids, block.trained, strict=True) if trained]
        assert learned == list(whole.input_ids[1:])
        assert all(any(block.trained) for block in blocks)


def test_end_in_a_documents_own_text_is_left_out_too() -> None:
    tokenizer = FAMILIES["turns"].tokenizer
    texts = "<bos>Say one.<eos>", "Say one."
    task = text_task(tokenizer, control_tokens=True, train_on_end=False)
    written, plain = (task.render(task.parse({"text": text})) for text in texts)
    assert written == plain
    assert tokenizer.eos_id not in written.input_ids


def test_document_with_bos_and_eos_gets_no_second_ones() -> None:
    tokenizer = FAMILIES["turns"].tokenizer
    task = text_task(tokenizer, control_tokens=True)
    turns = task.parse({"text": "<bos>Say one.<eos>"})
    tokens = task.render(turns)
    assert [i for i in tokens.input_ids if i in tokenizer.control_ids] == [1, 2]
    assert tokens.trained == (False,) + (True,) * (len(tokens.input_ids) - 1)
    assert task.encode_prompt(turns).count(1) == 1
    plain = text_task(tokenizer).render(turns)
    assert [i for i in plain.input_ids if i in tokenizer.control_ids] == [1, 2]
    assert len(plain.input_ids) > len(tokens.input_ids)


def test_document_missing_in_the_vocabulary_is_a_row_problem() -> None:
    task = text_task(FAMILIES["unigram"].tokenizer)
    with row_problem("decode-mismatch"):
        task.render(task.parse({"text": "one \u2603"}))


def test_user_turn_is_continued_from_its_end_and_document_from_its_prefix(chatml: Family) -> None:
    task = text_task(chatml.tokenizer, sample_prefix_tokens=2)
    long = "Say one and two, then red cat."
    assert task.encode_prompt(task.user_turn(long)) == chatml.tokenizer.encode_untrusted(long)
    assert task.encode_prompt((Turn("text", long, trained=True),)) == chatml.tokenizer.encode_untrusted(long)[:2]


# --- long documents in blocks ---


def in_blocks(task: TextTask, document: str, max_tokens: int) -> tuple[TokenizedExample, list[tuple[Turn, ...]]]:
    whole = task.render(task.parse({"text": document}))
    return whole, task.split_blocks(whole, max_tokens)


def trained_ids(tokens: TokenizedExample) -> list[int]:
    return [i for i, trained in zip(tokens.input_ids, tokens.trained, strict=True) if trained]


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=st.lists(poisoned, min_size=1, max_size=12).map("".join), max_tokens=st.integers(8, 40))
def test_every_token_of_a_document_is_trained_in_exactly_one_block(
    family: Family, document: str, max_tokens: int
) -> None:
    tokenizer = family.tokenizer
    assume(family.name != "unigram" or family.hf_tokenizer.unk_token_id not in tokenizer.encode_untrusted(document))
    task = text_task(tokenizer, too_long="split")
    whole, turns = in_blocks(task, document, max_tokens)
    blocks = [task.render(block) for block in turns]
    if len(whole.input_ids) <= max_tokens:
        assert blocks == []
        return
    assert [i for block in blocks for i in trained_ids(block)] == trained_ids(whole)
    assert [len(block.input_ids) for block in blocks[:-1]] == [max_tokens] * (len(blocks) - 1)
    assert 2 <= len(blocks[-1].input_ids) <= max_tokens
    assert blocks[0].input_ids == whole.input_ids[:max_tokens]
    for before, block in pairwise(blocks):
        assert block.input_ids[0] == before.input_ids[-1]
        assert block.trained == (False,) + (True,) * (len(block.input_ids) - 1)
    ends = [tokenizer.eos_id in trained_ids(block) for block in blocks]
    assert ends == [False] * (len(blocks) - 1) + [True]


@pytest.mark.parametrize("prefix", [(), (3,), (3, 4)])
@pytest.mark.parametrize("more", range(9))
def test_prefix_before_a_document_is_trained_in_no_block(
    chatml: Family, monkeypatch: pytest.MonkeyPatch, prefix: tuple[int, ...], more: int
) -> None:
    """The document contains the prefix as well, so a later block may begin with the same tokens."""
    monkeypatch.setattr(chatml.tokenizer, "prefix_ids", prefix)
    task = text_task(chatml.tokenizer, too_long="split")
    ids = (*prefix, *[5] * (8 - len(prefix) - 1), *(prefix or (5,)), *range(6, 6 + more), *task.stop_ids)
    whole = task.render((Turn("text", "", trained=True, ids=ids),))
    assert trained_ids(whole) == list(ids[max(1, len(prefix)) :])
    blocks = [task.render(block) for block in task.split_blocks(whole, 8)]
    assert [i for block in blocks for i in trained_ids(block)] == (trained_ids(whole) if len(ids) > 8 else [])
    assert all(any(block.trained) for block in blocks)


def test_only_documents_over_the_limit_are_split(chatml: Family) -> None:
    document = "Say one and two, then red cat."
    task = text_task(chatml.tokenizer, too_long="split")
    size = len(task.render(task.parse({"text": document})).input_ids)
    assert in_blocks(task, document, size)[1] == []
    assert in_blocks(text_task(chatml.tokenizer, too_long="truncate"), document, size - 1)[1] == []
    whole, [first, last] = in_blocks(task, document, size - 1)
    assert first[0].ids == whole.input_ids[:-1]
    assert last[0].ids == whole.input_ids[-2:]  # only the end token is left, which is trained on
    assert trained_ids(task.render(last)) == [chatml.tokenizer.eos_id]
    assert (task.encode_prompt(last), task.reference(last)) == ([whole.input_ids[-2]], "")


def test_sample_continues_the_prefix_of_its_block(family: Family) -> None:
    task = text_task(family.tokenizer, too_long="split", sample_prefix_tokens=3)
    _, turns = in_blocks(task, "Say one and two, then red cat, blue dog, one go. " * 4, 20)
    assert len(turns) > 3
    for block in turns:
        ids, prompt = block[0].ids[: -1 if block is turns[-1] else None], task.encode_prompt(block)
        assert tuple(prompt) == ids[: 3 + len(family.tokenizer.prefix_ids)]
        assert task.reference(block) == task.decode_answer(ids[len(prompt) :])
    prompt = task.encode_prompt(turns[0])
    assert prompt == task.encode_prompt(task.parse({"text": "Say one and two, then red cat, blue dog, one go. " * 4}))


def test_text_of_a_block_is_its_decoded_ids(chatml: Family) -> None:
    document = "Say \u2603 one and two, then red cat."
    task = text_task(chatml.tokenizer, too_long="split")
    ids = chatml.tokenizer.encode_untrusted(document)
    _, turns = in_blocks(task, document, 8)
    assert [block[0].text for block in turns[:2]] == [
        chatml.tokenizer.decode(ids[:8]),
        chatml.tokenizer.decode(ids[7:15]),
    ]
    assert "<|im_end|>" not in turns[-1][0].text
    headers = FAMILIES["headers"].tokenizer
    _, turns = in_blocks(text_task(headers, too_long="split"), document, 8)
    assert turns[0][0].text.startswith("Say")


def test_text_is_a_template_or_a_column(chatml: Family) -> None:
    row = {"title": "Red {x}", "text": "cat", "a b": 1}
    assert text_task(chatml.tokenizer, "{title}: {text} {{x}} {a b}").parse(row)[0].text == "Red {x}: cat {x} 1"
    assert text_task(chatml.tokenizer, "a b").parse(row)[0].text == "1"


def test_tokenizer_without_end_token_is_refused() -> None:
    with raises(RecipeError, "no-stop-token"):
        text_task(TokenizerAdapter(wrapped(byte_level(("<|x|>",)), None)))
