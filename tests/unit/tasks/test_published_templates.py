"""Published chat templates with tools, tool calls and template arguments: ids as in transformers, answers trained."""

from typing import Any

import pytest
from tests.unit.tasks.published import PUBLISHED_TEMPLATES, Published, generated


@pytest.fixture(params=PUBLISHED_TEMPLATES)
def template(request: pytest.FixtureRequest) -> Published:
    return PUBLISHED_TEMPLATES[request.param]


def answers_in(template: Published, messages: list[Any], tools: list[Any], **arguments: object) -> list[str]:
    """Return what the template writes for each answer: what a conversation up to it has after the prompt for it."""
    answers = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = template.own_text(messages[:index], tools, add_generation_prompt=True, **arguments)
            whole = template.own_text(messages[: index + 1], tools, **arguments)
            assert whole.startswith(prompt)
            answer = whole[len(prompt) :]
            stop = template.specials[-1]
            answers.append(answer[: answer.index(stop) + len(stop)])
    return answers


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_ids_are_those_of_transformers_and_answers_are_trained(template: Published, count: int) -> None:
    for seed in range(count):
        messages, tools, arguments = generated(template, seed)
        column = {"tools": "tools"} if template.calls else {}
        task = template.task(train_on="last", template_arguments=arguments, **column)
        row = {"m": messages, "tools": tools}
        turns = task.parse(row)
        tokens = task.render(turns)
        assert template.tokenizer.decode(tokens.input_ids) == template.own_text(messages, tools, **arguments)
        assert list(tokens.input_ids) == template.own_ids(messages, tools, **arguments), seed
        prompt = task.encode_prompt(turns)
        assert prompt == template.own_ids(messages[:-1], tools, add_generation_prompt=True, **arguments)
        assert list(tokens.input_ids[: len(prompt)]) == prompt
        trained = [i for i, learned in zip(tokens.input_ids, tokens.trained, strict=True) if learned]
        expected = answers_in(template, messages, tools, **arguments)[-1]
        assert template.tokenizer.decode(trained) == expected
        assert task.decode_answer(trained) == task.reference(turns)
        assert task.prompt_turns(row) == tuple(turns[:-1])
