"""The rows of the chat task: columns and messages become turns, and a malformed row is a problem of that row."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.support.errors import row_problem
from tests.unit.tasks.families import Family, conversation

from tunesmith.core.records import Turn
from tunesmith.tasks.base import MissingColumn
from tunesmith.tasks.json_values import JsonNumber


def test_prompt_and_response_become_two_turns(chatml: Family) -> None:
    task = chatml.task(system="You know {topic}.")
    row = {"question": "{answer}", "answer": "{question} {0} {", "topic": "%s"}
    assert task.parse(row) == (
        Turn("system", "You know %s.", trained=False),
        Turn("user", "{answer}", trained=False),
        Turn("assistant", "{question} {0} {", trained=True),
    )


def test_turns_after_the_last_answer_are_left_out(chatml: Family) -> None:
    messages = [{"role": role, "content": role} for role in ("user", "assistant", "user", "tool", "system")]
    assert [turn.role for turn in chatml.task(messages="m").parse({"m": messages})] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("value", "code", "named"),
    [
        (None, "empty-cell", "`m`"),
        ("no JSON", "wrong-messages", "`m`"),
        ("[" * 100_000, "wrong-messages", "`m`"),
        ('{"role": "user"}', "wrong-messages", "`m`"),
        ({"role": ["user"], "content": ["x"]}, "wrong-messages", "`m`"),
        ([], "no-answer", ""),
        ([{"role": "user", "content": "x"}], "no-answer", ""),
        (["user"], "wrong-messages", "message 1"),
        ([{"from": "human"}], "wrong-messages", "message 1 has from"),
        ([{"from": "narrator", "value": "x"}], "unknown-role", "narrator"),
        ([{"from": "human", "value": "x", "content": "y"}], "wrong-messages", "`value`"),
        ([{"role": "user", "from": "Ann", "content": "y"}], "wrong-messages", "`from`"),
        ([{"speaker": "a", "text": "x"}], "wrong-messages", "message 1 has speaker, text"),
        ([{"role": "user"}], "wrong-messages", "message 1 has role"),
        ([{"role": "user", "content": None}], "wrong-messages", "message 1"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "wrong-messages", "list"),
        ([{"role": "user", "content": 5}], "wrong-messages", "number"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}], "wrong-tools", "message 1"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}], "wrong-tools", "JSON"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}], "wrong-tools", "message 1"),
        ([{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}], "wrong-messages", "`tool_calls`"),
        ([{"from": "function_call", "value": "f(x)"}], "wrong-tools", "f(x)"),
        ([{"role": "user", "content": "x", "name": "Ann"}], "wrong-messages", "`name`"),
        ([{"role": "user", "content": "x", "mood": "sad"}], "wrong-messages", "`mood`"),
        ([{"role": "assistant", "content": "x", "weight": 0.5}], "wrong-messages", "0 nor 1"),
        ([{"role": "assistant", "content": "x", "train": "no"}], "wrong-messages", "false nor true"),
        ([{"role": "user", "content": "x", "train": True}], "wrong-messages", "`train: true`"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}], "no-answer", ""),
        ([{"role": "user", "content": " \n"}], "wrong-messages", "message 1"),
        ([{"role": ["user"], "content": "x"}], "unknown-role", "['user']"),
        ([{"role": "assistant", "content": "x", "reasoning_content": "hm"}], "wrong-messages", "`reasoning_content`"),
    ],
)
def test_malformed_messages_are_row_problems(chatml: Family, value: Any, code: str, named: str) -> None:
    with row_problem(code, named):
        chatml.task(messages="m").parse({"m": value})


def test_messages_may_be_json_and_have_unused_empty_keys(chatml: Family) -> None:
    messages = [
        {"role": "system", "content": " "},
        {"role": "user", "content": "x", "name": None, "tool_calls": None, "id": "a1", "weight": 0},
        {"role": "assistant", "content": "y", "tool_calls": [], "weight": 1, "train": True, "name": ""},
    ]
    task = chatml.task(messages="m")
    assert task.parse({"m": json.dumps(messages)}) == task.parse({"m": messages}) == conversation("x", "y")


@pytest.mark.parametrize("name", ["gpt", "GPT", "chatgpt", "bing", "model", "bot", "assistant"])
@pytest.mark.parametrize(("role", "content"), [("from", "value"), ("role", "text"), ("from", "content")])
def test_sharegpt_messages_are_the_same_turns(chatml: Family, name: str, role: str, content: str) -> None:
    messages = [{role: "human", content: "x"}, {role: name, content: "y", "role" if role == "from" else "from": None}]
    task = chatml.task(messages="m")
    assert task.parse({"m": messages}) == conversation("x", "y")


def test_names_of_tools_and_system_are_known(chatml: Family) -> None:
    names = ("system", "human", "gpt", "observation", "function_response", "tool", "gpt")
    messages = [{"from": name, "value": name} for name in names]
    roles = [turn.role for turn in chatml.task(messages="m").parse({"m": messages})]
    assert roles == ["system", "user", "assistant", "tool", "tool", "tool", "assistant"]


def test_columns_of_messages_are_one_conversation(chatml: Family) -> None:
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    task, row = chatml.task(messages=["prompt", "completion"]), {"prompt": turns[:3], "completion": turns[3:]}
    context = tuple(replace(turn, trained=False) for turn in conversation("a", "b", "c"))
    assert task.parse(row) == (*context, Turn("assistant", "d", trained=True)), "answers of the prompt are context"
    assert task.prompt_turns(row) == task.prompt_turns({"prompt": turns[:3]}) == context
    with pytest.raises(MissingColumn) as caught:
        task.parse({"prompt": turns})
    assert caught.value.column == "completion"


def test_roles_of_the_recipe_come_first(chatml: Family) -> None:
    messages = [{"from": "Customer", "value": "x"}, {"from": "human", "value": "y"}]
    task = chatml.task(messages="m", roles={"Customer": "user", "human": "assistant"})
    assert task.parse({"m": messages}) == conversation("x", "y")
    with row_problem("unknown-role", "customer") as caught:
        task.parse({"m": [{"from": "customer", "value": "x"}]})
    assert "data.roles" in caught.value.hint


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}, {"weight": JsonNumber("0.0")}])
def test_turn_excluded_from_training_is_not_trained(chatml: Family, key: dict[str, Any]) -> None:
    def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
        return {"role": role, "content": content, **more}

    messages = [turn("user", "a"), turn("assistant", "bad", **key), turn("user", "b"), turn("assistant", "good")]
    task = chatml.task(messages="m")
    turns = task.parse({"m": messages})
    assert [message.trained for message in turns] == [False, False, False, True]
    tokens = task.render(turns)
    learned = [i for i, trained in zip(tokens.input_ids, tokens.trained, strict=True) if trained]
    assert task.decode_answer(learned) == "good"
    # Turns after the last trained answer are left out, so they are not the reference either.
    more = [*messages, turn("user", "c"), turn("assistant", "worse", **key)]
    assert task.parse({"m": more}) == turns
    assert chatml.task(messages="m", train_on="last").parse({"m": more}) == turns


def test_messages_inside_a_column(chatml: Family) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    task = chatml.task(messages="data.turns")
    for row in ({"data": {"turns": messages}}, {"data": json.dumps({"turns": messages})}, {"data.turns": messages}):
        assert task.parse(row) == conversation("x", "y")
    with row_problem("wrong-cell", "`data`"):
        task.parse({"data": '{"turns": ['})
    with pytest.raises(MissingColumn):
        task.parse({"data": {"messages": messages}})
    with row_problem("wrong-messages") as caught:
        chatml.task(messages="data").parse({"data": {"turns": messages}})
    assert "data.turns" in caught.value.hint


def test_python_list_in_a_cell_has_a_hint(chatml: Family) -> None:
    with row_problem("wrong-messages") as caught:
        chatml.task(messages="m").parse({"m": str([{"role": "user", "content": "x"}])})
    assert "json.dumps" in caught.value.hint


def test_empty_system_turn_is_left_out(chatml: Family) -> None:
    task = chatml.task(system="{s?}")
    row = {"question": "x", "answer": "y"}
    assert task.parse(row) == task.parse({**row, "s": " "}) == conversation("x", "y")
    assert [turn.role for turn in task.parse({**row, "s": "Be brief."})] == ["system", "user", "assistant"]


def test_missing_column_is_not_a_row_problem(chatml: Family) -> None:
    with pytest.raises(MissingColumn) as caught:
        chatml.task(messages="m").parse({"other": []})
    assert caught.value.column == "m"
    with pytest.raises(MissingColumn) as caught:
        chatml.task(system="{topic}").parse({"question": "x", "answer": "y"})
    assert caught.value.column == "topic"


def test_system_turns_of_row_and_recipe_exclude_each_other(chatml: Family) -> None:
    row = {"m": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]}
    with row_problem("wrong-messages", "system"):
        chatml.task(messages="m", system="Be brief.").parse(row)


def test_user_turn_has_the_fixed_system_turn(chatml: Family) -> None:
    task = chatml.task(system="Be brief.")
    assert task.user_turn("Who?") == (Turn("system", "Be brief.", trained=False), Turn("user", "Who?", trained=False))
    assert task.encode_prompt(task.user_turn("Who?")) == chatml.own_ids(task.user_turn("Who?"), generation=True)
    assert chatml.task(system="{topic}").user_turn("Who?") == conversation("Who?")
