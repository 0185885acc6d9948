"""The short form of the general set becomes a complete entry of `evaluate.also`."""

import pytest
from tests.unit.recipe.conftest import RECIPE, Load, Problems, line_of

from tunesmith.recipe.also import guarded_metric
from tunesmith.recipe.general_set import MAX_LOSS
from tunesmith.recipe.load import dump_recipe
from tunesmith.recipe.schema import AlsoChat


@pytest.mark.parametrize(
    ("task", "templates"),
    [
        ("chat", {"prompt": "{prompt}", "response": "{response}"}),
        ("seq2seq", {"prompt": "{prompt}", "response": "{response}"}),
        ("completion", {"text": "{text}"}),
    ],
)
def test_general_is_rendered_as_the_rows_of_the_run(load: Load, task: str, templates: dict[str, str]) -> None:
    [entry] = load(f"{RECIPE}  also: [general]\n", f"data.task={task}").evaluate.also
    assert (entry.name, guarded_metric(entry), entry.max_drop) == ("general", "loss", MAX_LOSS)
    assert {key: getattr(entry, key) for key in templates} == templates
    assert entry.task == ("text" if task == "completion" else task)


def test_general_has_the_template_arguments_of_the_run_and_keeps_written_keys(load: Load) -> None:
    source = "{source: {embedded: general}, max_drop: 0.3, rows: 50}"
    recipe = load(f"{RECIPE}  also: [{source}]\n", "data.template_arguments={enable_thinking: false}")
    [entry] = recipe.evaluate.also
    assert isinstance(entry, AlsoChat)
    assert (entry.name, entry.max_drop, entry.rows) == ("general", 0.3, 50)
    assert entry.template_arguments == {"enable_thinking": False}
    assert load(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("entry", "key", "code"),
    [
        ("genral", "evaluate.also", "wrong-value"),
        ("{source: {embedded: other}}", "evaluate.also.0.source.embedded", "wrong-value"),
        ("{source: {embedded: general}, max_drop: -1}", "evaluate.also.0.max_drop", "wrong-value"),
    ],
)
def test_a_wrong_general_set_is_an_error(problems: Problems, entry: str, key: str, code: str) -> None:
    text = f"{RECIPE}  also: [{entry}]\n"
    [problem] = problems(text)
    assert (problem.key, problem.code, problem.where) == (key, code, line_of(text, "also:"))
