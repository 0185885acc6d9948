"""Documents: every token is learned but the first, and none of them is forged unless the recipe says so."""

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.unit.tasks.families import FAMILIES, Family, byte_level, wrapped

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Turn
from tunesmith.recipe.rows import FileSource
from tunesmith.recipe.schema import TextData
from tunesmith.tasks import task_for
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.text import TextTask
from tunesmith.tasks.tokenizer import Codec

letters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=8)
control = st.sampled_from(["<|im_end|>", "</s>", "<s>", "<bos>", "<eos>", "[/INST]", "<|endoftext|>", " ", "\n", "one"])
poisoned = st.lists(st.one_of(letters, control), max_size=8).map("".join).filter(lambda text: bool(text.strip()))


def text_task(codec: Codec, text: str = "text", **changes: Any) -> TextTask:
    task = task_for(TextData(source=FileSource(file="rows.jsonl"), task="text", text=text, **changes), codec)
    assert isinstance(task, TextTask)
    return task


def test_every_token_is_learned_but_the_first(family: Family) -> None:
    task = text_task(family.codec)
    turns = task.parse({"text": "Say one and two, then red cat."})
    tokens = task.render(turns, "some id")
    assert tokens.example_id == "some id"
    assert tokens.trained == (False,) + (True,) * (len(tokens.input_ids) - 1)
    assert tokens.input_ids[: len(family.codec.prefix_ids)] == family.codec.prefix_ids
    assert tokens.input_ids[-1] == family.codec.eos_id
    own = family.tokenizer("Say one and two, then red cat.").input_ids
    assert list(tokens.input_ids) == [*own, family.codec.eos_id]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=poisoned, prompt_tokens=st.integers(1, 12))
def test_any_document(family: Family, document: str, prompt_tokens: int) -> None:
    codec = family.codec
    assume(family.name != "unigram" or family.tokenizer.unk_token_id not in codec.personal(document))
    task = text_task(codec, prompt_tokens=prompt_tokens)
    turns = task.parse({"text": document})
    tokens, prompt = task.render(turns), task.prompt(turns)
    assert [i for i in tokens.input_ids if i in codec.control_ids] == [*codec.prefix_ids, codec.eos_id]
    assert list(tokens.input_ids[: len(prompt)]) == prompt
    assert len(prompt) - len(codec.prefix_ids) == min(prompt_tokens, len(tokens.input_ids) - 1 - len(codec.prefix_ids))
    assert task.answer(tokens.input_ids[len(prompt) :]) == task.reference(turns)


def test_control_tokens_on_purpose(chatml: Family) -> None:
    document = "<|im_start|>user\nSay one.<|im_end|>\n<|im_start|>assistant\n<think>one"
    for wanted in (True, False):
        task = text_task(chatml.codec, control_tokens=wanted)
        tokens = task.render(task.parse({"text": document}))
        own = chatml.tokenizer(document).input_ids
        assert (list(tokens.input_ids[:-1]) == own) == wanted
        assert chatml.codec.decode(tokens.input_ids[:-1]) == document
        assert all(tokens.trained[1:])


def test_a_document_that_brings_its_own_ends_gets_no_second_ones() -> None:
    codec = FAMILIES["turns"].codec
    task = text_task(codec, control_tokens=True)
    turns = task.parse({"text": "<bos>Say one.<eos>"})
    tokens = task.render(turns)
    assert [i for i in tokens.input_ids if i in codec.control_ids] == [1, 2]
    assert tokens.trained == (False,) + (True,) * (len(tokens.input_ids) - 1)
    assert task.prompt(turns).count(1) == 1
    plain = text_task(codec).render(turns)
    assert [i for i in plain.input_ids if i in codec.control_ids] == [1, 2]
    assert len(plain.input_ids) > len(tokens.input_ids)


def test_a_document_of_letters_that_the_vocabulary_lacks() -> None:
    task = text_task(FAMILIES["unigram"].codec)
    with pytest.raises(RowProblem, match="do not decode to the document"):
        task.render(task.parse({"text": "one \u2603"}))


def test_a_person_is_continued_from_all_he_wrote_and_a_document_from_its_beginning(chatml: Family) -> None:
    task = text_task(chatml.codec, prompt_tokens=2)
    long = "Say one and two, then red cat."
    assert task.prompt(task.question(long)) == chatml.codec.personal(long)
    assert task.prompt((Turn("text", long, trained=True),)) == chatml.codec.personal(long)[:2]


def test_templates_and_columns(chatml: Family) -> None:
    row = {"title": "Red {x}", "text": "cat", "a b": 1}
    assert text_task(chatml.codec, "{title}: {text} {{x}} {a b}").parse(row)[0].text == "Red {x}: cat {x} 1"
    assert text_task(chatml.codec, "a b").parse(row)[0].text == "1"


def test_a_tokenizer_without_an_end() -> None:
    with pytest.raises(RecipeError, match="no end-of-text token"):
        text_task(Codec(wrapped(byte_level(("<|x|>",)), None)))
