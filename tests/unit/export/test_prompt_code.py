"""The code of a prompt gives the turns that the model was trained on."""

from pathlib import Path
from typing import Any

import pytest

from tunesmith.export.prompt_code import prompt_code
from tunesmith.recipe.data_record import load_data
from tunesmith.tasks.base import fill_template

HOSTILE = 'Be "brief".\n\n```\n"""{{x}}\\n<b>\u202e {city}\u00a0\u00e9\U0001f600'


def code_of(record: dict[str, Any]) -> Any:
    return prompt_code(load_data(record, Path("card")))


def called(record: dict[str, Any], **values: Any) -> Any:
    code = code_of(record)
    names: dict[str, Any] = {}
    exec(code.function, names)
    return names["messages" if code.is_chat else "prompt"](**values)


def test_messages_have_the_system_turn_and_the_template() -> None:
    record = {"task": "chat", "system": "Be brief.\nUse {unit}.", "prompt": "Say {mr}.\n\nNow", "response": "{ref}"}
    assert called(record, unit="metres", mr="x=3") == [
        {"role": "system", "content": "Be brief.\nUse metres."},
        {"role": "user", "content": "Say x=3.\n\nNow"},
    ]


@pytest.mark.parametrize("task", ["chat", "completion"])
def test_any_template_gives_the_text_of_training(task: str) -> None:
    record = {"task": task, "prompt": HOSTILE, "response": "{a}"}
    found = called(record, city='Oslo "x"')
    text = found[0]["content"] if task == "chat" else found
    assert text == fill_template(record["prompt"], {"city": 'Oslo "x"'})


def test_code_is_printable() -> None:
    record = {"task": "chat", "system": HOSTILE, "prompt": "{q}", "response": "{a}"}
    assert all(line.isprintable() for line in code_of(record).function.splitlines())


def test_columns_become_distinct_names() -> None:
    record = {"task": "completion", "prompt": "{a b}{a.b}{class}{1}{a_b}", "response": "{x}"}
    code = code_of(record)
    assert code.call == 'prompt(a_b="...", a_b_2="...", column_class="...", column_1="...", a_b_3="...")'
    assert called(record, a_b="1", a_b_2="2", column_class="3", column_1="4", a_b_3="5") == "12345"


def test_conversations_follow_the_system_turn() -> None:
    record = {"task": "chat", "messages": "turns", "system": "Be brief."}
    conversation = [{"role": "user", "content": "Hi"}]
    assert called(record, turns=conversation) == [{"role": "system", "content": "Be brief."}, *conversation]


def test_optional_columns_and_arguments_are_stated() -> None:
    record = {
        "task": "chat", "prompt": "{q}\n{context?}", "response": "{a}",
        "template_arguments": {"enable_thinking": False},
    }  # fmt: skip
    code = code_of(record)
    assert (code.optional, dict(code.arguments)) == (("context",), {"enable_thinking": False})
