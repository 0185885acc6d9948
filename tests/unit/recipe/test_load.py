"""A recipe as people write it: every mistake is told, all at once, at its line, and nothing else is read into it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.unit.recipe.conftest import RECIPE, Load, Told, changed, line_of

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.load import RecipeProblems, dump_recipe
from tunesmith.recipe.schema import ChatData, Recipe
from tunesmith.recipe.templates import TEMPLATES, read_template

# --- what is right ---


def test_a_recipe_is_read_with_its_defaults(load: Load) -> None:
    recipe = load(RECIPE)
    assert recipe.tuning.method == "lora"
    assert (recipe.tuning.rank, recipe.tuning.alpha, recipe.seed) == (8, 32, 0)
    assert isinstance(recipe.data, ChatData)
    assert recipe.promote is None


def test_a_recipe_cannot_be_changed(load: Load) -> None:
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
def test_an_unknown_key_at_any_depth_names_the_nearest(
    told: Callable[..., Told], old: str, new: str, key: str, near: str
) -> None:
    text = changed(old, new)
    name = key.rpartition(".")[2]
    found = {one: (where, message) for where, one, message in told(text)}
    assert found[key] == (line_of(text, f"{name}:"), f"unknown key; did you mean `{near}`?")


@pytest.mark.parametrize(
    ("old", "new", "key", "known"),
    [
        (
            "file: rows.csv",
            "hub: a/b, rows: 5",
            "data.source.rows",
            "name, weight, rename, hub, revision, config, split",
        ),
        ("file: rows.csv", "file: rows.csv, config: x", "data.source.config", "name, weight, rename, file, quote"),
        ("method: lora", "method: full", "tuning.rank", "method"),
    ],
)
def test_a_key_of_another_kind_is_unknown_here(
    told: Callable[..., Told], old: str, new: str, key: str, known: str
) -> None:
    [(_, found, message)] = told(changed(old, new))
    assert found == key
    assert message in (f"unknown key; known are {known}", f"unknown key; did you mean `{known}`?")


@pytest.mark.parametrize(
    ("override", "key", "instead"),
    [("data.source.file=rows.csv", "data.source.hub", "'data.source={file: ...}'"),
     ("tuning.method=full", "tuning.rank", "'tuning={method: ...}'")],
)  # fmt: skip
def test_what_an_override_makes_unknown_is_told_with_the_override_to_write(
    load: Load, override: str, key: str, instead: str
) -> None:
    with pytest.raises(RecipeProblems) as caught:
        load(RECIPE.replace("file: rows.csv", "hub: a/b"), override)
    [message] = [problem.message for problem in caught.value.problems if problem.key == key]
    assert message.endswith(f"the section is of another kind: replace it whole, {instead}")
    with pytest.raises(RecipeProblems) as caught:
        load(RECIPE.replace("  rank: 8", "  rnak: 8"), "tuning.alpha=8")
    assert "another kind" not in str(caught.value)


def test_keys_that_are_no_text_have_a_line_too(told: Callable[..., Told]) -> None:
    assert told(RECIPE + "7: x\n")[0][:2] == ("recipe.yaml:21", "7")


# --- all mistakes at once ---


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(told: Callable[..., Told]) -> None:
    text = RECIPE.replace("name: viggo", "name: Not Good!").replace("task: chat", "tsk: chat")
    text = text.replace("rank: 8", "rank: 0").replace("2e-4", "fast").replace("rougeL, exact_match", "")
    assert [(where, key) for where, key, _ in told(text)] == [
        ("recipe.yaml:1", "name"),
        ("recipe.yaml:3", "data"),
        ("recipe.yaml:12", "tuning.rank"),
        ("recipe.yaml:14", "train.learning_rate"),
        ("recipe.yaml:16", "evaluate.metrics"),
    ]


def test_the_error_is_one_text_with_a_line_each_and_exit_code_2(load: Load) -> None:
    with pytest.raises(RecipeError) as caught:
        load(changed("rank: 8", "rank: 0") + "x: 1\n")
    assert caught.value.exit_code == 2
    assert str(caught.value).splitlines() == [
        "recipe.yaml:12: tuning.rank: input should be greater than or equal to 1 (found 0)",
        "recipe.yaml:21: x: unknown key; known are " + ", ".join(Recipe.model_fields),
    ]


def test_what_is_missing_is_told_at_its_section(told: Callable[..., Told]) -> None:
    text = changed("  learning_rate: 2e-4\n", "  epochs: 1\n").replace("name: viggo\n", "")
    assert told(text) == [
        ("recipe.yaml", "name", "is missing"),
        ("recipe.yaml:12", "train.learning_rate", "is missing"),
    ]


def test_an_empty_mapping_lacks_every_required_section(told: Callable[..., Told]) -> None:
    assert [key for _, key, _ in told("{}\n")] == ["data", "evaluate", "model", "name", "train", "tuning"]


TWO = "{source: [{file: a.csv}, {file: b.csv, splitt: test}], task: completion, prompt: '{q}', response: '{a}'}"


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ([f"data={TWO}", "evaluate.primary=accuracy"], ["data.source.1.splitt", "evaluate.primary"]),
        (["train={lr: 1e-4}", "evaluate.primary=accuracy"], ["evaluate.primary", "train.learning_rate", "train.lr"]),
        (["name=a b", "data.split.test=0"], ["data.split.test", "name"]),
        (["train.epochs=many", "data.split.test=0"], ["data.split.test", "train.epochs"]),
        (["tuning={method: lore}", "data.split.test=0"], ["data.split.test", "tuning.method"]),
        (["model.precision=fp12", "model.chat_markup=chatml", "data.split.test=0"],
         ["data.split.test", "model.precision"]),
    ],
)  # fmt: skip
def test_wrong_keys_and_contradictions_are_reported_together(
    told: Callable[..., Told], overrides: list[str], keys: list[str]
) -> None:
    assert {key for _, key, _ in told(RECIPE, *overrides)} == set(keys)


def test_problems_that_may_follow_from_a_wrong_value_are_not_reported(told: Callable[..., Told]) -> None:
    found = told(RECIPE, "train.valid_metrics=5", "train.select_best_by=rougeL", "evaluate.primary=accuracy")
    assert {key for _, key, _ in found} == {"train.valid_metrics", "evaluate.primary"}


def test_an_entry_of_a_list_is_named_in_words(load: Load) -> None:
    with pytest.raises(RecipeProblems, match=r"data\.source\.1\.splitt \(of the second entry\): unknown key"):
        load(RECIPE, f"data={TWO}")


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("task: chat", "task: chatt", "data.task", "`chatt` is not known; did you mean `chat`?"),
        ("  task: chat\n", "", "data", "needs the key `task`"),
        ("method: lora", "method: LoRA", "tuning.method", "`LoRA` is not known; known are full, lora, qlora"),
        ("method: lora", "method: qlora\n  bits: 8\n  quantization: nf4", "tuning", "no effect on 8 bits"),
        ("method: lora", "method: qlora\n  bits: 8\n  double_quantization: true", "tuning", "no effect on 8 bits"),
        ("method: lora", "method: qlora\n  bits: 3", "tuning.bits", "`3` is not known; known are 4, 8"),
        ("method: lora", "bits: 4\n  method: lora", "tuning.bits", "unknown key"),
        ("{file: rows.csv}", "{fil: rows.csv}", "data.source", "must have one of the keys `file`, `hub`, `generated`"),
        (
            "learning_rate: 2e-4",
            "schedule: constnt\n  learning_rate: 2e-4",
            "train.schedule",
            "`constnt` is not known; did you mean `constant`?",
        ),
        ("rank: 8", "rank: eight", "tuning.rank", "found 'eight'"),
        ("rank: 8", "target: []", "tuning.target", "must not be empty"),
        ("2e-4", ".nan", "train.learning_rate", "finite"),
        ("2e-4", "-1", "train.learning_rate", "greater than 0"),
        ("rows.csv", "[1, two]", "data.source.file.0", "must be text (found 1)"),
        ("rank: 8", "rank: [8]", "tuning.rank", "valid integer"),
        ("{base: org/model}", "org/model", "model", "must be a section of keys (found 'org/model')"),
        ("[rougeL, exact_match]", "rougeL", "evaluate.metrics", "must be a list (found 'rougeL')"),
        ('"Say {mr}"', "{mr}", "data.prompt", "must be text, and without quotes"),
        ('"Say {mr}"', '"Say {mr"', "data.prompt", "expected '}'"),
        ('"Say {mr}"', '"Say {mr.x}"', "data.prompt", "`{mr.x}` would be a value inside a column"),
        ('"Say {mr}"', '"Say it"', "data.prompt", "names no column"),
    ],
)
def test_a_wrong_value_is_told_in_words(told: Callable[..., Told], old: str, new: str, key: str, message: str) -> None:
    found = told(changed(old, new))
    assert key in {one for _, one, _ in found}
    assert any(message in text for _, one, text in found if one == key), found


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("rank: 8", "rank: true", "tuning.rank"),
        ("2e-4", "true", "train.learning_rate"),
        ("learning_rate: 2e-4", "learning_rate: 2e-4\n  micro_batch: true", "train.micro_batch"),
        ("max_drop: 0.02", "max_drop: true", "evaluate.guards.0.max_drop"),
    ],
)
def test_true_is_not_the_number_one(told: Callable[..., Told], old: str, new: str, key: str) -> None:
    text = changed(old, new)
    assert (line_of(text, f"{key.rpartition('.')[2]}: true"), key, "must be a number (found true)") in told(text)


def test_a_seed_that_no_generator_takes_is_refused(told: Callable[..., Told], load: Load) -> None:
    assert load(RECIPE, f"seed={2**63 - 1}").seed == 2**63 - 1
    assert told(RECIPE, f"seed={2**63}")[0][1] == "seed"
    assert told(RECIPE, f"seed={'9' * 5000}")[0][1] == "seed"  # more digits than Python reads


def test_a_long_value_is_shown_cut(told: Callable[..., Told]) -> None:
    [(_, _, message)] = told(changed("rank: 8", f"rank: {'x' * 5000}"))
    assert len(message) < 300


# --- overrides ---


def test_overrides_change_nested_keys_and_the_last_one_holds(load: Load) -> None:
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


def test_an_override_may_replace_a_whole_section(load: Load) -> None:
    assert load(RECIPE, "tuning={method: full}").tuning.method == "full"


def test_an_override_may_open_a_section_that_is_absent_or_null(load: Load) -> None:
    for text in (RECIPE, RECIPE + "promote: null\n"):
        promote = load(text, "promote.model=mine").promote
        assert promote is not None
        assert promote.model == "mine"


def test_an_empty_override_takes_a_section_out(load: Load) -> None:
    assert load(RECIPE + "promote: {model: mine}\n", "promote=").promote is None


@pytest.mark.parametrize(
    ("override", "where", "key", "message"),
    [
        ("train.lerning_rate=1", "train.lerning_rate=1", "train.lerning_rate", "did you mean `learning_rate`?"),
        ("tuning.rank=0", "tuning.rank=0", "tuning.rank", "greater than or equal to 1"),
        ("tuning={method: lora, rank: 0}", "tuning={method: lora, rank: 0}", "tuning.rank", "greater than"),
        ("tuning.method=full", "recipe.yaml:12", "tuning.rank", "unknown key"),
        ("tuning.rank=true", "tuning.rank=true", "tuning.rank", "must be a number"),
        ("train.micro_batch=99", "train.micro_batch=99", "train.micro_batch", "no effect"),
        ("evaluate.primary=bleu", "evaluate.primary=bleu", "evaluate.primary", "not among"),
        ("data.prompt={mr}", "data.prompt={mr}", "data.prompt", "without quotes"),
        ("train=", "train=", "train", "must be a section of keys"),
    ],
)
def test_overrides_are_checked_as_the_file_is(
    told: Callable[..., Told], override: str, where: str, key: str, message: str
) -> None:
    [(found_where, found_key, text)] = told(RECIPE, override)
    assert (found_where, found_key) == (where, key)
    assert message in text


def test_mistakes_of_file_and_overrides_are_told_together(told: Callable[..., Told]) -> None:
    found = told(changed("rank: 8", "rnak: 8"), "train.epochs=-1")
    assert {where for where, _, _ in found} == {"recipe.yaml:12", "train.epochs=-1"}


@pytest.mark.parametrize(
    "override", ["train.max_steps", "=5", ".a=5", "train..epochs=1", "name.x=1", "evaluate.metrics.0=a"]
)
def test_what_is_no_override_is_refused(load: Load, override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(RECIPE, override)
    assert override in str(caught.value)


# --- the resolved recipe ---


VARIANTS: dict[str, dict[str, Any]] = {
    "column": {"split": {"column": "part"}},
    "messages": {"prompt": None, "response": None, "messages": "turns", "train_on": "last"},
    "hub": {"source": {"hub": "org/rows", "revision": "2024-01-01"}},
    "generated": {"source": {"generated": "shop-sql", "rows": 20}},
    "several files": {"source": {"file": ["a.csv", "b.csv"]}},
}


@pytest.mark.parametrize("name", [*VARIANTS, *TEMPLATES])
def test_the_resolved_recipe_reads_back_as_the_same(load: Load, name: str) -> None:
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
def test_any_text_and_number_survive_being_resolved(load: Load, text: str, rate: float) -> None:
    values = load(RECIPE).model_dump()
    values["data"]["split"]["by"] = text
    values["data"]["prompt"] = CONTROL.sub("", text).replace("{", "{{").replace("}", "}}") + "{mr}"
    values["train"]["learning_rate"] = rate
    recipe = Recipe.model_validate(values)
    assert load(dump_recipe(recipe)) == recipe
