"""The completion task: token ids of prompt and answer, in training and in generation."""

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.support.errors import raises, row_problem
from tests.unit.tasks.families import FAMILIES, Family, byte_level, wrapped

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.data_source import FileSource
from tunesmith.recipe.schema import CompletionData
from tunesmith.tasks import task_for
from tunesmith.tasks.base import MissingColumn
from tunesmith.tasks.completion import CompletionTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

ROW = {"question": "Say one.", "answer": "one", "n": 3}
letters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=8)
control = st.sampled_from(["<|im_end|>", "</s>", "<s>", "<bos>", "<eos>", "[/INST]", "<|endoftext|>", " ", "\n", "one"])
poisoned = st.lists(st.one_of(letters, control), max_size=6).map("".join).filter(lambda text: bool(text.strip()))


def completion(
    tokenizer: TokenizerAdapter, prompt: str = "Q: {question}\nA:", response: str = " {answer}", **changes: Any
) -> CompletionTask:
    source = FileSource(file="rows.jsonl")
    data = CompletionData(source=source, task="completion", prompt=prompt, response=response, **changes)
    task = task_for(data, tokenizer)
    assert isinstance(task, CompletionTask)
    return task


def test_prompt_answer_and_end(family: Family) -> None:
    task, tokenizer = completion(family.tokenizer), family.tokenizer
    turns = task.parse(ROW)
    tokens, prompt = task.render(turns, "some id"), task.encode_prompt(turns)
    bos = family.hf_tokenizer.bos_token_id
    assert tokens.example_id == "some id"
    assert list(tokens.input_ids[: len(prompt)]) == prompt
    assert prompt.count(bos) == (1 if tokenizer.prefix_ids else 0)
    assert tokens.trained == (False,) * len(prompt) + (True,) * (len(tokens.input_ids) - len(prompt))
    assert tokens.input_ids[-1] == tokenizer.eos_id
    trained_ids = tokens.input_ids[len(prompt) :]
    assert task.decode_answer(trained_ids).strip() == task.reference(turns).strip() == "one"
    assert task.encode_prompt(turns[:1]) == prompt


def test_answer_without_its_end(family: Family) -> None:
    whole, endless = (completion(family.tokenizer, train_on_end=end) for end in (True, False))
    turns = whole.parse(ROW)
    ended, tokens = whole.render(turns), endless.render(turns)
    assert (tokens.input_ids, tokens.trained) == (ended.input_ids[:-1], ended.trained[:-1])
    assert tokens.trained[-1]
    assert endless.encode_prompt(turns) == whole.encode_prompt(turns)
    assert endless.stop_ids == whole.stop_ids


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=poisoned, answer=poisoned)
def test_random_text_round_trips_without_control_tokens(family: Family, question: str, answer: str) -> None:
    task, tokenizer = completion(family.tokenizer, "{question}", "{answer}"), family.tokenizer
    turns = task.parse({"question": question, "answer": answer})
    assume(family.name != "unigram" or family.hf_tokenizer.unk_token_id not in tokenizer.encode_untrusted(answer))
    tokens, prompt = task.render(turns), task.encode_prompt(turns)
    assert list(tokens.input_ids[: len(prompt)]) == prompt
    assert tokenizer.decodes_to(tokens.input_ids[len(prompt) : -1], answer, before=prompt[-1:])
    special = [i for i in tokens.input_ids if i in tokenizer.special_ids]
    assert special == [*tokenizer.prefix_ids, tokenizer.eos_id]


def test_markup_counts_in_answers_and_not_in_prompts(chatml: Family) -> None:
    task = completion(chatml.tokenizer)
    [think] = chatml.tokenizer.encode_trusted("<think>")
    tokens = task.render(task.parse({"question": "<think>", "answer": "<think>one<|im_end|>"}))
    assert tokens.input_ids.count(think) == 1
    assert tokens.input_ids.count(chatml.tokenizer.eos_id) == 1


def test_answer_missing_in_the_vocabulary_is_a_row_problem() -> None:
    task = completion(FAMILIES["unigram"].tokenizer)
    with row_problem("decode-mismatch"):
        task.render(task.parse({"question": "one", "answer": "\u2603"}))


def test_tokenizer_without_end_token_is_refused() -> None:
    with raises(RecipeError, "no-stop-token"):
        completion(TokenizerAdapter(wrapped(byte_level(("<|x|>",)), None)))


def test_user_turn_fills_a_prompt_of_one_column(chatml: Family) -> None:
    task = completion(chatml.tokenizer)
    assert task.encode_prompt(task.user_turn("Say one.")) == task.encode_prompt(task.parse(ROW))
    two_columns = completion(chatml.tokenizer, "{question} {n}")
    assert [turn.text for turn in two_columns.user_turn("Say {n}")] == ["Say {n}"]


@pytest.mark.parametrize("row", [{"question": "x"}, {"answer": "x"}, {}])
def test_missing_column(chatml: Family, row: dict[str, Any]) -> None:
    with pytest.raises(MissingColumn):
        completion(chatml.tokenizer).parse(row)
