"""Tasks of lm-evaluation-harness in a recipe: their names, and mistakes."""

import pytest
from tests.unit.recipe.conftest import RECIPE, Load, Problems, line_of


def test_the_name_of_a_task_is_that_of_its_set(load: Load) -> None:
    tasks = "[{task: arc_easy, max_drop: 0.02}, {task: Other, name: other, max_drop: 0.1, metric: acc_norm}]"
    settings = load(f"{RECIPE}  lm_eval: {tasks}\n").evaluate
    assert [(entry.set_name, entry.metric, entry.rows) for entry in settings.lm_eval] == [
        ("arc_easy", None, 200),
        ("other", "acc_norm", 200),
    ]


@pytest.mark.parametrize(
    ("also", "entry", "key", "code"),
    [
        ("[]", "{task: Other, max_drop: 0.1}", "evaluate.lm_eval.0", "missing-key"),
        ("[]", "{task: ../x, max_drop: 0.1}", "evaluate.lm_eval.0", "missing-key"),
        ("[]", "{task: a, max_drop: 0}", "evaluate.lm_eval.0.max_drop", "wrong-value"),
        ("[]", "{task: a, max_drop: 0.1}, {task: b, name: a, max_drop: 0.1}", "evaluate.lm_eval", "wrong-value"),
        ("[general]", "{task: general, max_drop: 0.1}", "evaluate.lm_eval", "wrong-value"),
    ],
)
def test_wrong_tasks_are_errors(problems: Problems, also: str, entry: str, key: str, code: str) -> None:
    text = f"{RECIPE}  also: {also}\n  lm_eval: [{entry}]\n"
    [problem] = problems(text)
    assert (problem.key, problem.code, problem.where) == (key, code, line_of(text, "lm_eval:"))
