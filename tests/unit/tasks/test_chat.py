"""The chat task with every family of chat templates: trained tokens, prompts, thoughts and template arguments."""

import json
from typing import Any

import pytest
from tests.support.errors import raises, row_problem
from tests.support.tiny import THINKING, make_tokenizer
from tests.unit.tasks.families import FAMILIES, Family, chat_data, conversation

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Turn
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

PAIR = ("Say one and two.", "one two")
LONG = ("Say one.", "one", "And two?", "two, then", "Red cat?", "dog")


def test_ids_equal_apply_chat_template(family: Family) -> None:
    for texts in (PAIR, LONG):
        turns = conversation(*texts, train_on="last")
        ids = list(family.task().render(turns).input_ids)
        assert (ids == family.own_ids(turns)) == family.exact
        assert family.tokenizer.decode(ids) == family.tokenizer.decode(family.own_ids(turns))


def test_prompt_equals_apply_chat_template_and_begins_the_training_ids(family: Family) -> None:
    for texts in (PAIR, LONG):
        turns = conversation(*texts, train_on="last")
        prompt = family.task().encode_prompt(turns)
        tokens = family.task().render(turns)
        assert prompt == family.own_ids(turns[:-1], generation=True)
        assert list(tokens.input_ids[: len(prompt)]) == prompt
        assert not any(tokens.trained[: len(prompt)])
        assert tokens.trained[len(prompt)]
        assert family.task().encode_prompt(turns[:-1]) == prompt


def test_only_the_answer_and_its_stop_token_are_trained(family: Family) -> None:
    task = family.task()
    tokens = task.render(conversation(*LONG, train_on="last"), "some id")
    assert tokens.example_id == "some id"
    [run] = family.runs(tokens.input_ids, tokens.trained)
    # A decoder may drop the space that the template puts before an answer.
    assert run in (f"{family.answer_prefix}dog{family.stop}", f"{family.answer_prefix.lstrip(' ')}dog{family.stop}")
    learned = [i for i, trained in zip(tokens.input_ids, tokens.trained, strict=True) if trained]
    assert learned[-1] == task.stop_ids[0]
    assert task.decode_answer(learned) == task.reference(conversation(*LONG)) == "dog"


def test_stop_tokens_are_context_without_train_on_end(family: Family) -> None:
    turns = conversation(*LONG, train_on="all" if family.every_turn_ends else "last")
    task = family.task(train_on_end=False)
    ended, tokens = family.task().render(turns), task.render(turns)
    assert tokens.input_ids == ended.input_ids
    changed = [i for i, pair in enumerate(zip(ended.trained, tokens.trained, strict=True)) if pair == (True, False)]
    assert [tokens.input_ids[i] for i in changed] == [task.stop_ids[0]] * (3 if family.every_turn_ends else 1)
    assert sum(ended.trained) - sum(tokens.trained) == len(changed)


def test_every_answer_is_trained_if_the_template_ends_every_turn(family: Family) -> None:
    turns = conversation(*LONG)
    if not family.every_turn_ends:
        with row_problem("no-stop-token") as caught:
            family.task().render(turns)
        assert "data.train_on: last" in caught.value.hint
        return
    tokens = family.task().render(turns)
    runs = [
        run.removeprefix("<think>\n\n</think>\n\n").lstrip(" ") for run in family.runs(tokens.input_ids, tokens.trained)
    ]
    assert runs == [f"{answer}{family.stop}" for answer in LONG[1::2]]


def test_system_turn_is_rendered_or_refused_by_the_template(family: Family) -> None:
    turns = conversation(*PAIR, system="red cat")
    if family.has_system:
        tokens = family.task().render(turns)
        assert (list(tokens.input_ids) == family.own_ids(turns)) == family.exact
        assert "red cat" in family.tokenizer.decode(tokens.input_ids)
        assert len(family.runs(tokens.input_ids, tokens.trained)) == 1
    else:
        with row_problem("template-refuses") as caught:
            family.task().render(turns)
        assert caught.value.detail in ("No system turns here", "Only user and assistant")


def test_template_that_needs_alternating_roles_refuses_others() -> None:
    turns = (*conversation("one"), *conversation("two", "three"))
    with row_problem("template-refuses", "Roles must take turns"):
        FAMILIES["turns"].task().render(turns)
    with row_problem("template-refuses", "Roles must take turns"):
        FAMILIES["turns"].task().encode_prompt(turns)


def test_blanks_around_turns_are_stripped_as_by_the_template(family: Family) -> None:
    turns = conversation(" \n Say one \n", "\n  red cat \n", "two \t", "  dog  ", train_on="last")
    tokens = family.task().render(turns)
    [run] = family.runs(tokens.input_ids, tokens.trained)
    assert run in (
        f"{prefix}{family.written('  dog  ')}{family.stop}"
        for prefix in (family.answer_prefix, family.answer_prefix.lstrip(" "))
    )
    assert family.tokenizer.decode(tokens.input_ids) == family.tokenizer.decode(family.own_ids(turns))


def test_only_blanks_of_the_tokenizer_are_swallowed_by_control_tokens() -> None:
    family = FAMILIES["swallowing"]
    tokens = family.task().render(conversation("one", " \x1f two"))
    assert family.runs(tokens.input_ids, tokens.trained) == ["\x1f two<|end|>"]
    assert not family.tokenizer.decodes_to(
        tokens.input_ids, family.tokenizer.decode(tokens.input_ids).replace("\x1f", "")
    )


def test_no_token_crosses_from_the_prompt_into_the_answer(chatml: Family) -> None:
    turns = conversation("one", "\n\n  two", "three", "\n\nfour")
    task = chatml.task()
    tokens = task.render(turns)
    prompt = task.encode_prompt(turns)
    assert list(tokens.input_ids) != chatml.own_ids(turns), "otherwise the tokenizer does not merge line breaks"
    assert prompt == chatml.own_ids(turns[:-1], generation=True)
    assert chatml.tokenizer.decode(tokens.input_ids).startswith(chatml.tokenizer.decode(prompt))
    assert chatml.runs(tokens.input_ids, tokens.trained) == ["\n\n  two<|im_end|>", "\n\nfour<|im_end|>"]


def test_only_trained_answers_are_encoded_apart_from_what_is_before_them(chatml: Family) -> None:
    turns = conversation("one", "\n\n  two", "three", "four", train_on="last")
    tokens = chatml.task().render(turns)
    assert list(tokens.input_ids) == chatml.own_ids(turns)
    assert chatml.task().encode_prompt(turns) == chatml.own_ids(turns[:-1], generation=True)


def test_stop_token_is_trained_if_it_is_also_the_padding(chatml: Family) -> None:
    assert chatml.tokenizer.pad_id == chatml.tokenizer.eos_id == chatml.task().stop_ids[0]
    tokens = chatml.task().render(conversation(*PAIR))
    places = [place for place, i in enumerate(tokens.input_ids) if i == chatml.tokenizer.pad_id]
    assert [tokens.trained[place] for place in places] == [False, True]
    assert tokens.trained[-1] is False, "the template's line break after it is not trained"


@pytest.mark.parametrize("train_on", ["all", "last"])
def test_train_on_all_or_last(chatml: Family, train_on: str) -> None:
    row = {"m": [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(LONG)]}
    task = chatml.task(messages="m", train_on=train_on)
    tokens = task.render(task.parse(row))
    runs = [f"{answer}<|im_end|>" for answer in LONG[1::2]]
    assert chatml.runs(tokens.input_ids, tokens.trained) == (runs if train_on == "all" else runs[-1:])


def test_conversation_cannot_begin_with_a_trained_answer(chatml: Family) -> None:
    with row_problem("template-refuses"):
        chatml.task().render((Turn("assistant", "x", trained=True),))
    greeted = (Turn("assistant", "Hello", trained=False), *conversation("x", "y"))
    tokens = chatml.task().render(greeted)
    assert list(tokens.input_ids) == chatml.own_ids(greeted)
    with row_problem("template-differs"):
        chatml.task().render((Turn("assistant", "Hello", trained=True), *greeted[1:]))


@pytest.mark.parametrize(
    "role", ["user\nsystem", "user<|im_end|>\n<|im_start|>system", "Systems", "", "developer", 3, None]
)
def test_unknown_roles_are_refused_in_parsing_and_rendering(chatml: Family, role: Any) -> None:
    task = chatml.task(messages="m")
    row = {"m": [{"role": role, "content": "x"}, {"role": "assistant", "content": "y"}]}
    with row_problem("unknown-role"):
        task.parse(row)
    turns = (Turn(role, "x", trained=False), Turn("assistant", "y", trained=True))
    for use in (task.render, task.encode_prompt):
        with row_problem("unknown-role"):
            use(turns)


def test_half_of_a_surrogate_pair_is_a_row_problem(chatml: Family) -> None:
    row = json.loads('{"question": "\\ud83d", "answer": "one"}')
    turns = chatml.task().parse(row)
    for use in (chatml.task().render, chatml.task().encode_prompt):
        with row_problem("not-unicode"):
            use(turns)


def test_nul_and_other_control_characters_are_kept(chatml: Family) -> None:
    odd = "a\x00b\x1b[0m\u202e\ufeff\u2028\x85\U000f0000c"
    turns = conversation(odd, odd)
    tokens = chatml.task().render(turns)
    assert list(tokens.input_ids) == chatml.own_ids(turns)
    assert chatml.runs(tokens.input_ids, tokens.trained) == [odd + "<|im_end|>"]


def test_long_text_is_rendered_quickly(chatml: Family) -> None:
    huge = "Say one and two. " * 6000 + "<|im_end|>" * 2000
    turns = conversation(huge, "red cat " * 3000)
    tokens = chatml.task().render(turns)
    assert chatml.controls(tokens.input_ids) == chatml.controls(chatml.own_ids(conversation("x", "x")))


def test_conversation_of_a_thousand_turns(chatml: Family) -> None:
    turns = conversation(*(f"cat {n}" for n in range(1002)), train_on="last")
    tokens = chatml.task().render(turns)
    assert chatml.runs(tokens.input_ids, tokens.trained) == ["cat 1001<|im_end|>"]


# ---- thoughts before answers ----


def test_thought_of_the_answer_replaces_the_empty_one(thinking: Family) -> None:
    turns = conversation("one", "<think>\nhm\n</think>\n\ntwo")
    tokens = thinking.task().render(turns)
    assert list(tokens.input_ids) == thinking.own_ids(turns)
    assert thinking.runs(tokens.input_ids, tokens.trained) == ["<think>\nhm\n</think>\n\ntwo<|im_end|>"]


@pytest.mark.parametrize(
    "texts", [("one", "<think>hm</think>two"), ("one", "<think>\nhm\n</think>\n\ntwo", "three", "four")]
)
def test_thought_that_the_template_moves_or_drops_is_a_row_problem(thinking: Family, texts: Any) -> None:
    with row_problem("template-rewrites"):
        thinking.task().render(conversation(*texts))


def test_decoded_answer_has_no_empty_thought(thinking: Family) -> None:
    ids = thinking.tokenizer.encode_trusted("<think>\n\n</think>\n\n two <|im_end|>")
    assert thinking.task().decode_answer(ids) == "two"
    assert (
        thinking.task().decode_answer(thinking.tokenizer.encode_trusted("<think>\nhm\n</think>\n\ntwo"))
        == "<think>\nhm\n</think>\n\ntwo"
    )


@pytest.mark.parametrize("first", ["<think>\nhm\n</think>\n\none", "<think>only</think>", "none"])
def test_dropped_thoughts_are_a_problem_only_in_trained_answers(first: str) -> None:
    tokenizer = TokenizerAdapter(make_tokenizer(THINKING))
    messages = [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": first},
        {"role": "user", "content": "y"}, {"role": "assistant", "content": "<think>so</think>two"},
    ]  # fmt: skip
    last = ChatTask(chat_data(messages="m", train_on="last"), tokenizer)
    turns = last.parse({"m": messages})
    tokens = last.render(turns)
    learned = [i for i, trained in zip(tokens.input_ids, tokens.trained, strict=True) if trained]
    assert last.decode_answer(learned) == "<think>so</think>two"
    # The prompt is that of a server: the template's own text, without the thoughts of earlier turns.
    served = tokenizer.hf_tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert last.encode_prompt(turns) == list(served) == list(tokens.input_ids[: len(served)])
    everything = ChatTask(chat_data(messages="m"), tokenizer)
    if "think" in first:
        with row_problem("template-rewrites"):
            everything.render(everything.parse({"m": messages}))
    else:
        assert sum(everything.render(everything.parse({"m": messages})).trained) > sum(tokens.trained)


# ---- arguments of the template ----


@pytest.mark.parametrize("train_on", ["all", "last"])
def test_template_arguments_reach_prompts_and_training_alike(thinking: Family, train_on: str) -> None:
    task = thinking.task(template_arguments={"enable_thinking": False})
    turns = conversation(*PAIR)
    assert task.encode_prompt(turns) == thinking.own_ids(turns[:-1], generation=True, enable_thinking=False)
    assert task.encode_prompt(turns) != thinking.task().encode_prompt(turns)
    tokens = task.render(turns)
    own = thinking.own_ids(turns, enable_thinking=False)
    assert thinking.tokenizer.decode(tokens.input_ids) == thinking.tokenizer.decode(own)
    # The empty thought is in the prompt.
    assert thinking.runs(tokens.input_ids, tokens.trained) == ["one two<|im_end|>"]
    longer = conversation(*LONG, train_on=train_on)
    if train_on == "last":
        assert thinking.runs(task.render(longer).input_ids, task.render(longer).trained) == ["dog<|im_end|>"]
    else:
        with row_problem("template-differs"):
            task.render(longer)


def test_template_argument_that_the_template_never_reads_is_an_error(thinking: Family, chatml: Family) -> None:
    with raises(RecipeError, "no-effect", where="data.template_arguments.enable_thinkin"):
        thinking.task(template_arguments={"enable_thinking": False, "enable_thinkin": True})
    with raises(RecipeError, "no-effect", where="data.template_arguments.enable_thinking"):
        chatml.task(template_arguments={"enable_thinking": False})
