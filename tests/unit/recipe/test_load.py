"""Loading a recipe: defaults, overrides, and mistakes, which are all reported together with their lines."""

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.errors import raises
from tests.unit.recipe.conftest import RECIPE, Load, Problems, changed, line_of

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.load import RecipeProblems, dump_recipe
from tunesmith.recipe.schema import ChatData, Recipe
from tunesmith.recipe.templates import TEMPLATES, read_template

# --- valid recipes ---


def test_defaults_are_filled_in(load: Load) -> None:
    recipe = load(RECIPE)
    assert recipe.tuning.method == "lora"
    assert (recipe.tuning.rank, recipe.tuning.alpha, recipe.seed) == (8, 32, 0)
    assert isinstance(recipe.data, ChatData)
    assert recipe.promote is None


def test_recipe_is_immutable(load: Load) -> None:
    with pytest.raises(ValidationError):
        load(RECIPE).train.epochs = 3


# --- unknown keys ---


@pytest.mark.parametrize(
    ("old", "new", "key", "near"),
    [
        ("model: {base", "modle: {base", "modle", "model"),
        ("base: org", "bse: org", "model.bse", "base"),
        ("prompt:", "promt:", "data.promt", "prompt"),
        ("valid:", "vaild:", "data.split.vaild", "valid"),
        ("file: rows.csv", "hub: a/b, revison: x", "data.source.revison", "revision"),
        ("rank: 8", "rnak: 8", "tuning.rnak", "rank"),
        ("learning_rate:", "lerning_rate:", "train.lerning_rate", "learning_rate"),
        ("max_drop:", "max_dorp:", "evaluate.guards.0.max_dorp", "max_drop"),
    ],
)
def test_unknown_key_at_any_depth_suggests_the_nearest(
    problems: Problems, old: str, new: str, key: str, near: str
) -> None:
    text = changed(old, new)
    [problem] = [problem for problem in problems(text) if problem.key == key]
    assert (problem.code, problem.where) == ("unknown-key", line_of(text, f"{key.rpartition('.')[2]}:"))
    assert f"`{near}`" in problem.message


@pytest.mark.parametrize(
    ("old", "new", "key", "known"),
    [
        (
            "file: rows.csv",
            "hub: a/b, rows: 5",
            "data.source.rows",
            "name, weight, loss_weight, rename, hub, revision, config, split",
        ),
        (
            "file: rows.csv",
            "file: rows.csv, config: x",
            "data.source.config",
            "name, weight, loss_weight, rename, file, quote",
        ),
        ("method: lora", "method: full", "tuning.rank", "method"),
    ],
)
def test_key_of_another_kind_of_section_is_unknown(
    problems: Problems, old: str, new: str, key: str, known: str
) -> None:
    [problem] = problems(changed(old, new))
    assert (problem.code, problem.key) == ("unknown-key", key)
    assert known in problem.message


@pytest.mark.parametrize(
    ("override", "key", "replacement"),
    [("data.source.file=rows.csv", "data.source.hub", "'data.source={file: ...}'"),
     ("tuning.method=full", "tuning.rank", "'tuning={method: ...}'")],
)  # fmt: skip
def test_override_that_changes_the_kind_of_a_section_suggests_replacing_it(
    problems: Problems, override: str, key: str, replacement: str
) -> None:
    mistakes = problems(RECIPE.replace("file: rows.csv", "hub: a/b"), override)
    [message] = [problem.message for problem in mistakes if problem.key == key]
    assert message.endswith(replacement)
    unrelated = problems(RECIPE.replace("  rank: 8", "  rnak: 8"), "tuning.alpha=8")
    assert not any("={" in problem.message for problem in unrelated)


def test_key_that_is_not_text_has_a_line(problems: Problems) -> None:
    [problem] = problems(RECIPE + "7: x\n")
    assert (problem.where, problem.key) == ("recipe.yaml:21", "7")


# --- several mistakes ---


def test_all_mistakes_are_reported_in_order_of_lines(problems: Problems) -> None:
    text = RECIPE.replace("name: viggo", "name: Not Good!").replace("task: chat", "tsk: chat")
    text = text.replace("rank: 8", "rank: 0").replace("2e-4", "fast").replace("rougeL, exact_match", "")
    assert [(problem.where, problem.key, problem.code) for problem in problems(text)] == [
        ("recipe.yaml:1", "name", "bad-name"),
        ("recipe.yaml:3", "data", "missing-key"),
        ("recipe.yaml:12", "tuning.rank", "wrong-value"),
        ("recipe.yaml:14", "train.learning_rate", "wrong-value"),
        ("recipe.yaml:16", "evaluate.metrics", "wrong-value"),
    ]


def test_error_has_one_line_per_mistake_and_the_code_they_share(load: Load) -> None:
    with raises(RecipeProblems, "recipe") as caught:
        load(changed("rank: 8", "rank: 0") + "x: 1\n")
    assert caught.value.exit_code == 2
    first, second = str(caught.value).splitlines()
    assert first.startswith("recipe.yaml:12: tuning.rank: ")
    assert second.startswith("recipe.yaml:21: x: ")
    with raises(RecipeProblems, "unknown-key", "x", "y"):
        load(RECIPE + "x: 1\ny: 2\n")


def test_missing_key_is_reported_at_its_section(problems: Problems) -> None:
    text = changed("  learning_rate: 2e-4\n", "  epochs: 1\n").replace("name: viggo\n", "")
    assert [(problem.where, problem.key, problem.code) for problem in problems(text)] == [
        ("recipe.yaml", "name", "missing-key"),
        ("recipe.yaml:12", "train.learning_rate", "missing-key"),
    ]


def test_empty_mapping_lacks_every_required_section(problems: Problems) -> None:
    keys = [problem.key for problem in problems("{}\n")]
    assert keys == ["data", "evaluate", "model", "name", "train", "tuning"]


TWO_SOURCES = "{source: [{file: a.csv}, {file: b.csv, splitt: test}], task: completion, prompt: '{q}', response: '{a}'}"


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ([f"data={TWO_SOURCES}", "evaluate.primary=accuracy"], ["data.source.1.splitt", "evaluate.primary"]),
        (["train={lr: 1e-4}", "evaluate.primary=accuracy"], ["evaluate.primary", "train.learning_rate", "train.lr"]),
        (["name=a b", "data.split.test=0"], ["data.split.test", "name"]),
        (["train.epochs=many", "data.split.test=0"], ["data.split.test", "train.epochs"]),
        (["tuning={method: lore}", "data.split.test=0"], ["data.split.test", "tuning.method"]),
        (["model.precision=fp12", "model.chat_markup=chatml", "data.split.test=0"],
         ["data.split.test", "model.precision"]),
    ],
)  # fmt: skip
def test_invalid_values_and_contradictions_are_reported_together(
    problems: Problems, overrides: list[str], keys: list[str]
) -> None:
    assert {problem.key for problem in problems(RECIPE, *overrides)} == set(keys)


def test_contradiction_that_may_follow_from_an_invalid_value_is_not_reported(problems: Problems) -> None:
    mistakes = problems(RECIPE, "train.valid_metrics=5", "train.select_best_by=rougeL", "evaluate.primary=accuracy")
    assert {problem.key for problem in mistakes} == {"train.valid_metrics", "evaluate.primary"}


def test_list_entry_is_named_in_words(problems: Problems) -> None:
    [problem] = problems(RECIPE, f"data={TWO_SOURCES}")
    assert (problem.key, problem.code) == ("data.source.1.splitt", "unknown-key")
    assert "second entry" in problem.entry
    assert problem.entry in str(problem)


@pytest.mark.parametrize(
    ("old", "new", "key", "code", "named"),
    [
        ("task: chat", "task: chatt", "data.task", "wrong-value", ["`chatt`", "`chat`"]),
        ("  task: chat\n", "", "data", "missing-key", ["`task`"]),
        ("method: lora", "method: LoRA", "tuning.method", "wrong-value", ["`LoRA`", "full, lora, qlora"]),
        ("method: lora", "method: qlora\n  bits: 8\n  quantization: nf4", "tuning", "no-effect", ["`quantization`"]),
        ("method: lora", "method: qlora\n  bits: 8\n  double_quantization: true", "tuning", "no-effect",
         ["`double_quantization`"]),
        ("method: lora", "method: qlora\n  bits: 3", "tuning.bits", "wrong-value", ["`3`", "4, 8"]),
        ("method: lora", "bits: 4\n  method: lora", "tuning.bits", "unknown-key", []),
        ("{file: rows.csv}", "{fil: rows.csv}", "data.source", "missing-key", ["`file`, `hub`, `generated`"]),
        ("learning_rate: 2e-4", "schedule: constnt\n  learning_rate: 2e-4", "train.schedule", "wrong-value",
         ["`constnt`", "`constant`"]),
        ("rank: 8", "rank: eight", "tuning.rank", "wrong-value", ["'eight'"]),
        ("rank: 8", "target: []", "tuning.target", "wrong-value", []),
        ("2e-4", ".nan", "train.learning_rate", "wrong-value", ["finite"]),
        ("2e-4", "-1", "train.learning_rate", "wrong-value", ["above 0"]),
        ("rows.csv", "[1, two]", "data.source.file.0", "wrong-value", ["found 1"]),
        ("rank: 8", "rank: [8]", "tuning.rank", "wrong-value", ["whole number"]),
        ("{base: org/model}", "org/model", "model", "wrong-value", ["section", "'org/model'"]),
        ("[rougeL, exact_match]", "rougeL", "evaluate.metrics", "wrong-value", ["list", "'rougeL'"]),
        ('"Say {mr}"', "{mr}", "data.prompt", "wrong-value", ["text", "without quotes"]),
        ('"Say {mr}"', '"Say {mr"', "data.prompt", "wrong-template", ["'}'"]),
        ('"Say {mr}"', '"Say {mr[0].x}"', "data.prompt", "wrong-template", ["`{mr.0.x}`"]),
        ('"Say {mr}"', '"Say it"', "data.prompt", "wrong-template", ["{question}"]),
    ],
)  # fmt: skip
def test_invalid_value_is_reported_in_terms_of_yaml(
    problems: Problems, old: str, new: str, key: str, code: str, named: list[str]
) -> None:
    mistakes = problems(changed(old, new))
    messages = [problem.message for problem in mistakes if (problem.key, problem.code) == (key, code)]
    assert messages, mistakes
    assert any(all(value in message for value in named) for message in messages), mistakes


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("rank: 8", "rank: true", "tuning.rank"),
        ("2e-4", "true", "train.learning_rate"),
        ("learning_rate: 2e-4", "learning_rate: 2e-4\n  micro_batch: true", "train.micro_batch"),
        ("max_drop: 0.02", "max_drop: true", "evaluate.guards.0.max_drop"),
    ],
)
def test_true_is_not_accepted_as_the_number_one(problems: Problems, old: str, new: str, key: str) -> None:
    text = changed(old, new)
    where = line_of(text, f"{key.rpartition('.')[2]}: true")
    assert (where, key, "wrong-value") in [(problem.where, problem.key, problem.code) for problem in problems(text)]


def test_seed_beyond_63_bits_is_invalid(problems: Problems, load: Load) -> None:
    assert load(RECIPE, f"seed={2**63 - 1}").seed == 2**63 - 1
    assert problems(RECIPE, f"seed={2**63}")[0].key == "seed"
    assert problems(RECIPE, f"seed={'9' * 5000}")[0].key == "seed"  # more digits than Python converts


def test_long_value_is_shortened_in_the_message(problems: Problems) -> None:
    [problem] = problems(changed("rank: 8", f"rank: {'x' * 5000}"))
    assert len(problem.message) < 300


# --- overrides ---


def test_overrides_change_nested_keys_and_the_last_one_wins(load: Load) -> None:
    recipe = load(
        RECIPE,
        "train.learning_rate=1e-5",
        "train.epochs=2",
        "train.epochs=3",
        "data.split.test=0.2",
        "data.prompt='Tell {mr}: now'",
        "evaluate.metrics=[rougeL, exact_match, rouge1]",
        "model.base=on",
    )
    assert (recipe.train.learning_rate, recipe.train.epochs) == (1e-5, 3)
    assert (recipe.data.split.valid, recipe.data.split.test) == (0.1, 0.2)
    assert isinstance(recipe.data, ChatData)
    assert recipe.data.prompt == "Tell {mr}: now"
    assert recipe.evaluate.metrics == ("rougeL", "exact_match", "rouge1")
    assert recipe.model.base == "on"


def test_override_replaces_a_whole_section(load: Load) -> None:
    assert load(RECIPE, "tuning={method: full}").tuning.method == "full"


def test_override_adds_a_section_that_is_absent_or_null(load: Load) -> None:
    for text in (RECIPE, RECIPE + "promote: null\n"):
        promote = load(text, "promote.model=mine").promote
        assert promote is not None
        assert promote.model == "mine"


def test_empty_override_removes_a_section(load: Load) -> None:
    assert load(RECIPE + "promote: {model: mine}\n", "promote=").promote is None


@pytest.mark.parametrize(
    ("override", "where", "key", "code"),
    [
        ("train.lerning_rate=1", "train.lerning_rate=1", "train.lerning_rate", "unknown-key"),
        ("tuning.rank=0", "tuning.rank=0", "tuning.rank", "wrong-value"),
        ("tuning={method: lora, rank: 0}", "tuning={method: lora, rank: 0}", "tuning.rank", "wrong-value"),
        ("tuning.method=full", "recipe.yaml:12", "tuning.rank", "unknown-key"),
        ("tuning.rank=true", "tuning.rank=true", "tuning.rank", "wrong-value"),
        ("train.micro_batch=99", "train.micro_batch=99", "train.micro_batch", "no-effect"),
        ("evaluate.primary=bleu", "evaluate.primary=bleu", "evaluate.primary", "not-measured"),
        ("data.prompt={mr}", "data.prompt={mr}", "data.prompt", "wrong-value"),
        ("train=", "train=", "train", "wrong-value"),
    ],
)
def test_overrides_are_validated_like_the_file(
    problems: Problems, override: str, where: str, key: str, code: str
) -> None:
    [problem] = problems(RECIPE, override)
    assert (problem.where, problem.key, problem.code) == (where, key, code)


def test_mistakes_of_file_and_overrides_are_reported_together(problems: Problems) -> None:
    mistakes = problems(changed("rank: 8", "rnak: 8"), "train.epochs=-1")
    assert {problem.where for problem in mistakes} == {"recipe.yaml:12", "train.epochs=-1"}


@pytest.mark.parametrize(
    "override", ["train.max_steps", "=5", ".a=5", "train..epochs=1", "name.x=1", "evaluate.metrics.0=a"]
)
def test_malformed_override_is_refused(load: Load, override: str) -> None:
    with raises(RecipeError, "wrong-override", override):
        load(RECIPE, override)


# --- the resolved recipe ---


VARIANTS: dict[str, dict[str, Any]] = {
    "column": {"split": {"column": "part"}},
    "messages": {"prompt": None, "response": None, "messages": "turns", "train_on": "last"},
    "hub": {"source": {"hub": "org/rows", "revision": "2024-01-01"}},
    "generated": {"source": {"generated": "shop-sql", "rows": 20}},
    "several files": {"source": {"file": ["a.csv", "b.csv"]}},
}


@pytest.mark.parametrize("name", [*VARIANTS, *TEMPLATES])
def test_resolved_recipe_round_trips(load: Load, name: str) -> None:
    if name in TEMPLATES:
        recipe = load(read_template(name))
    else:
        values = load(RECIPE).model_dump()
        recipe = Recipe.model_validate({**values, "data": {**values["data"], **VARIANTS[name]}})
    assert load(dump_recipe(recipe)) == recipe


CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
    | st.sampled_from(
        [
            "on",
            "2e-4",
            "null",
            "~",
            "017",
            "a: b",
            "- a",
            "# x",
            " x ",
            "x\n\n",
            "\t",
            "\x85",
            "\u2028",
            "!x",
            "a\b\r\x1b\xa0_",
        ]
    ),
    rate=st.floats(1e-12, 1e3),
)
def test_resolved_recipe_round_trips_any_text_and_number(load: Load, text: str, rate: float) -> None:
    values = load(RECIPE).model_dump()
    values["data"]["split"]["by"] = text
    values["data"]["prompt"] = CONTROL.sub("", text).replace("{", "{{").replace("}", "}}") + "{mr}"
    values["train"]["learning_rate"] = rate
    recipe = Recipe.model_validate(values)
    assert load(dump_recipe(recipe)) == recipe
