"""Published chat templates with tools, tool calls and template arguments: ids as in transformers, answers trained."""

from datetime import date
from typing import Any

import pytest
from tests.support.errors import raises, row_problem
from tests.unit.tasks.published import PUBLISHED_TEMPLATES, Published, generated

from tunesmith.core.errors import RecipeError


@pytest.fixture(params=PUBLISHED_TEMPLATES)
def template(request: pytest.FixtureRequest) -> Published:
    return PUBLISHED_TEMPLATES[request.param]


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_ids_are_those_of_transformers_and_answers_are_trained(template: Published, count: int) -> None:
    refused = 0
    for seed in range(count):
        messages, tools, arguments = generated(template, seed)
        column = {"tools": "tools"} if template.calls else {}
        task = template.task(train_on="last", template_arguments=arguments, **column)
        row = {"m": messages, "tools": tools}
        turns = task.parse(row)
        if lost_system(template, messages, tools):
            with row_problem("template-rewrites"):
                task.render(turns)
            refused += 1
            continue
        tokens = task.render(turns)
        assert list(tokens.input_ids) == template.ids_after_prompt(messages, tools, **arguments), seed
        prompt = task.encode_prompt(turns)
        assert prompt == template.own_ids(messages[:-1], tools, add_generation_prompt=True, **arguments)
        assert list(tokens.input_ids[: len(prompt)]) == prompt
        trained = [i for i, learned in zip(tokens.input_ids, tokens.trained, strict=True) if learned]
        answer, stop = template.own_answer(messages, tools, **arguments), template.specials[-1]
        assert template.tokenizer.decode(trained) == answer[: answer.index(stop) + len(stop)]
        assert task.decode_answer(trained) == task.reference(turns)
        assert task.prompt_turns(row) == tuple(turns[:-1])
    assert refused <= count / 3


def lost_system(template: Published, messages: list[dict[str, Any]], tools: list[Any]) -> bool:
    """Return whether the prompt for the last answer lacks the system turn, as Mistral Nemo's does after a result."""
    prompt = template.own_text(messages[:-1], tools, add_generation_prompt=True)
    return messages[0]["role"] == "system" and messages[0]["content"] not in prompt


def test_template_date_replaces_the_current_one_and_ends_the_warning() -> None:
    template = PUBLISHED_TEMPLATES["mistral_small_3_2"]
    row = {"m": [{"role": "user", "content": "Say one"}, {"role": "assistant", "content": "One"}]}
    fixed, current = template.task(template_date=date(2020, 2, 29)), template.task(template_date=None)
    turns = fixed.parse(row)
    assert "The current date is 2020-02-29." in template.tokenizer.decode(fixed.encode_prompt(turns))
    assert [task.changes_daily(turns) for task in (fixed, current)] == [False, True]
    with_system = [{"role": "system", "content": "Be brief."}, *row["m"]]
    assert not current.changes_daily(current.parse({"m": with_system})), "the template then writes no date"


def test_template_date_is_refused_if_the_template_writes_none() -> None:
    with raises(RecipeError, "no-effect", where="data.template_date"):
        PUBLISHED_TEMPLATES["qwen3"].task(template_date=date(2020, 2, 29))
