"""A recipe as people write it: every mistake is told, all at once, at its line, and nothing else is read into it."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.columns import asked_columns, needed_columns, optional_columns
from tunesmith.recipe.contradictions import remarks
from tunesmith.recipe.load import RecipeProblems, dump_recipe, load_recipe
from tunesmith.recipe.schema import ChatData, Recipe
from tunesmith.recipe.templates import TEMPLATES, template_text

# The tests below name its lines by number.
RECIPE = """\
name: viggo
model: {base: org/model}
data:
  source: {file: rows.csv}
  task: chat
  prompt: "Say {mr}"
  response: "{ref}"
  split:
    valid: 0.1
tuning:
  method: lora
  rank: 8
train:
  learning_rate: 2e-4
evaluate:
  metrics: [rougeL, exact_match]
  primary: rougeL
  guards:
    - metric: exact_match
      max_drop: 0.02
"""

Load = Callable[..., Recipe]
Told = list[tuple[str, str, str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write text to recipe.yaml and load it, with overrides."""

    def write_and_load(text: str | bytes, *overrides: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, overrides)

    return write_and_load


@pytest.fixture
def told(load: Load) -> Callable[..., Told]:
    """Load a recipe that is wrong; return (where, key, message) of each problem."""

    def problems(text: str, *overrides: str) -> Told:
        with pytest.raises(RecipeProblems) as caught:
            load(text, *overrides)
        return [(one.where, one.key, one.message) for one in caught.value.problems]

    return problems


def changed(old: str, new: str) -> str:
    assert RECIPE.count(old) == 1, old
    return RECIPE.replace(old, new)


def line_of(text: str, part: str) -> str:
    return f"recipe.yaml:{text[: text.index(part)].count(chr(10)) + 1}"


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


@pytest.mark.parametrize(
    ("written", "read"),
    [("2e-4", 2e-4), ("2.0E-4", 2e-4), (".5", 0.5), ("1", 1.0), ("1_000", 1000.0), ("0x10", 16.0)],
)
def test_numbers_are_numbers(load: Load, written: str, read: float) -> None:
    assert load(changed("2e-4", written)).train.learning_rate == read


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n"])
def test_words_are_words(load: Load, word: str) -> None:
    assert load(changed("name: viggo", f"name: {word}")).name == word


def test_no_leading_zero_makes_a_number_octal(load: Load) -> None:
    assert load(RECIPE + "seed: 017\n").seed == 17
    assert load(RECIPE + "seed: 0o17\n").seed == 15


@pytest.mark.parametrize("date", ["2024-01-01", "2024-13-45", "2001-12-14t21:59:43.10-05:00", "2024-01-01 10:30:00"])
def test_dates_are_text_to_the_letter(load: Load, date: str) -> None:
    assert load(changed("org/model", date)).model.base == date
    assert load(RECIPE, f"model.base={date}").model.base == date


def test_an_alias_and_a_merge_are_written_out(load: Load) -> None:
    text = changed("valid: 0.1", "valid: &tenth 0.1\n    test: *tenth")
    assert load(text).data.split.test == 0.1
    text = changed("learning_rate: 2e-4", "<<: {epochs: 3}\n  learning_rate: 2e-4")
    assert load(text).train.epochs == 3


def test_a_byte_order_mark_and_dos_line_ends_are_no_text(load: Load) -> None:
    assert load(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode()) == load(RECIPE)


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
    ("written", "lost"),
    [
        *((f"\\{word}", f"\\{word}") for word in ("boxed", "frac", "vec", "alpha", "epsilon", "right", "LaTeX", "Pr")),
        (r"snake\_case", r"\_case"), (r"\N", r"\N"), (r"\0", r"\0"),
    ],
)  # fmt: skip
def test_escapes_that_eat_text_are_refused_with_their_line(load: Load, written: str, lost: str) -> None:
    for text in (
        changed('"Say {mr}"', f'"Say {{mr}} {written} x"'),
        changed('"Say {mr}"', f'"Say {{mr}}\n    {written} x"'),
    ):
        with pytest.raises(RecipeError) as caught:
            load(text)
        assert caught.value.where == line_of(text, lost).replace(
            "recipe.yaml", str(caught.value.where).rpartition(":")[0]
        )
        assert "single quotes" in str(caught.value.hint)
    recipe = load(changed('"Say {mr}"', f"'Say {{mr}} {written}'"))
    assert isinstance(recipe.data, ChatData)
    assert recipe.data.prompt == f"Say {{mr}} {written}"
    with pytest.raises(RecipeError):
        load(RECIPE, f'data.prompt="{{mr}} {written}"')
    # In a regular expression it would be as wrong.
    with pytest.raises(RecipeError):
        load(RECIPE, f'data.filters=[{{column: mr, matches: "{written}"}}]')


@pytest.mark.parametrize(
    "written", [r"\text", r"\textbf", r"\times", r"\theta", r"\frac", r"\nabla", r"\neq", r"\x07", r"\u2028"]
)
def test_control_characters_in_templates_are_refused(told: Callable[..., Told], load: Load, written: str) -> None:
    if written != r"\frac":
        [(where, key, _)] = told(changed('"Say {mr}"', f'"Say {{mr}} {written} x"'))
        assert (where, key) == (line_of(RECIPE, '"Say {mr}"'), "data.prompt")
    for template in ("system", "response"):
        with pytest.raises(RecipeError):
            load(RECIPE, f'data.{template}="{{mr}} {written}"')


def test_line_breaks_and_tabs_that_are_meant_stay(load: Load) -> None:
    for template in ("Name\tAge\n{mr}", "{mr}\n\nanswer", "a\n\ttan\t{mr}"):
        written = template.replace("\n", r"\n").replace("\t", r"\t")
        recipe = load(changed('"Say {mr}"', f'"{written}"'))
        assert isinstance(recipe.data, ChatData)
        assert recipe.data.prompt == template
        assert load(dump_recipe(recipe)) == recipe


def test_a_column_may_be_marked_as_optional(load: Load) -> None:
    recipe = load(changed('"Say {mr}"', '"Say {mr} {more?}"'))
    assert asked_columns(recipe.data) == ("more", "mr")
    assert optional_columns(recipe.data) == {"more"}
    assert "more" not in needed_columns(recipe.data)
    recipe = load(changed('"Say {mr}"', '"{more?} {mr} {more}"'))
    assert optional_columns(recipe.data) == set()
    with pytest.raises(RecipeProblems):
        load(changed('"Say {mr}"', '"Say {?}"'))


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


# --- settings that contradict one another ---


@pytest.mark.parametrize(
    ("old", "new", "key", "part"),
    [
        ("primary: rougeL", "primary: rouge1", "evaluate.primary", "not among evaluate.metrics"),
        ("metric: exact_match", "metric: rouge2", "evaluate.guards", "`rouge2` is not among"),
        ("primary: rougeL", "primary: rougeL\n  database: x.db", "evaluate.database", "no effect"),
        ("max_drop: 0.02", "max_drop: 2", "evaluate.guards", "2 points are 0.02"),
        ("max_drop: 0.02", "max_drop: 1", "evaluate.guards", "can never fail"),
        (
            "name: viggo",
            "name: viggo\npromote: {model: m, min_gain: 5}",
            "promote.min_gain",
            "5 points are 0.05",
        ),
        (
            "name: viggo",
            "name: viggo\npromote: {model: m, min_gain: 1}",
            "promote.min_gain",
            "no gain can exceed",
        ),
        ("valid: 0.1", "test: 0", "data.split.test", "must be above 0"),
        ("valid: 0.1", "valid: 0.9", "data.split", "no rows to train on"),
        ("valid: 0.1", "column: s\n    valid: 0.1", "data.split", "no effect"),
        ("2e-4", "2e-4\n  micro_batch: 9", "train.micro_batch", "no effect"),
        ("2e-4", "2e-4\n  micro_batch: 0", "train.micro_batch", "at least 1"),
        ('response: "{ref}"', "messages: m", "data", "already holds the turns"),
        ('  response: "{ref}"\n', "", "data", "give `prompt` and `response`, or `messages`"),
        ("task: chat", "task: chat\n  train_on: last", "data", "`train_on` has no effect"),
        ("task: chat", "task: chat\n  too_long: split", "data.too_long", "would lack the prompt that it answers"),
    ],
)
def test_a_setting_without_effect_is_an_error(
    told: Callable[..., Told], old: str, new: str, key: str, part: str
) -> None:
    [(where, found, message)] = told(changed(old, new))
    assert (found, part in message) == (key, True), message
    assert where.startswith("recipe.yaml:")


def test_execution_needs_a_database(told: Callable[..., Told]) -> None:
    text = changed("[rougeL, exact_match]", "[rougeL, exact_match, execution]")
    assert told(text) == [("recipe.yaml:16", "evaluate.metrics", "`execution` needs evaluate.database")]


def test_validation_that_never_happens_is_told(told: Callable[..., Told]) -> None:
    text = changed("valid: 0.1", "valid: 0").replace("2e-4", "2e-4\n  valid_every_steps: 5")
    assert told(text)[0][1:] == ("train.valid_every_steps", "has no effect while data.split.valid is 0")


@pytest.mark.parametrize(
    ("train", "key", "message"),
    [
        ("valid_rows: 8", "valid_rows", "has no effect without train.valid_metrics"),
        ("valid_metrics: [perplexity]", "valid_metrics", "the loss, whose exponent perplexity is, is measured anyway"),
        ("valid_metrics: [loss]", "valid_metrics", "is measured anyway"),
        ("valid_metrics: [token_accuracy]", "valid_metrics", "token_accuracy is measured anyway"),
        ("valid_metrics: [rogueL]", "valid_metrics", "unknown metric `rogueL`, did you mean `rougeL`?"),
        ("valid_metrics: [execution]", "valid_metrics", "`execution` needs evaluate.database"),
        ("valid_rows: 0", "valid_rows", "greater than or equal to 1"),
        ("choose_by: rougeL", "choose_by", "`rougeL` is not measured: name it in train.valid_metrics (loss, token_"),
        ("choose_by: perplexity", "choose_by", "is not measured"),
    ],
)
def test_what_validation_cannot_measure_is_told(told: Callable[..., Told], train: str, key: str, message: str) -> None:
    text = changed("2e-4", f"2e-4\n  {train}")
    [(where, found, said)] = told(text)
    assert (where, found) == (line_of(text, f"  {key}:"), f"train.{key}")
    assert message in said


def test_all_that_is_wrong_with_validation_is_told_at_once(told: Callable[..., Told]) -> None:
    text = changed("2e-4", "2e-4\n  valid_metrics: [perplexity, rouge, execution]\n  choose_by: bleu")
    text = text.replace("valid: 0.1", "valid: 0")
    where, other = line_of(text, "  valid_metrics:"), line_of(text, "  choose_by:")
    assert sorted((line, key) for line, key, _ in told(text)) == [
        *[(where, "train.valid_metrics")] * 3,
        *[(other, "train.choose_by")] * 2,
    ]
    assert any("known" not in said and "rouge1, rouge2, rougeL, rougeLsum" in said for *_, said in told(text))


@pytest.mark.parametrize("by", ["loss", "token_accuracy", "rouge2", "json_valid", "mine:words"])
def test_whatever_validation_measures_may_choose(load: Load, by: str) -> None:
    text = changed("2e-4", f"2e-4\n  valid_metrics: [rouge, json_valid, 'mine:words']\n  choose_by: '{by}'")
    assert load(text).train.choose_by == by


def test_a_database_for_validation_alone_has_an_effect(load: Load) -> None:
    text = changed("2e-4", "2e-4\n  valid_metrics: [execution]")
    assert load(text.replace("primary: rougeL", "primary: rougeL\n  database: x.db")).evaluate.database == "x.db"


@pytest.mark.parametrize("setting", ["valid_metrics: [rougeL]", "choose_by: token_accuracy"])
def test_choosing_without_valid_rows_is_told(told: Callable[..., Told], setting: str) -> None:
    text = changed("valid: 0.1", "valid: 0").replace("2e-4", f"2e-4\n  {setting}")
    key = f"train.{setting.partition(':')[0]}"
    assert [(one, said) for _, one, said in told(text)] == [(key, "has no effect while data.split.valid is 0")]


@pytest.mark.parametrize(
    ("tuning", "train", "launch", "message"),
    [
        ("{method: qlora, bits: 8}", "", "{sharding: full}", "`full` cannot be done: weights of 8 bits are not"),
        ("{method: full}", "\n  optimizer: adafactor", "{sharding: node}", "`adafactor` would remember something else"),
        ("{method: full}", "", "{on: slurm, sharding: full}", "`full` has no effect on one process"),
    ],
)
def test_parts_that_cannot_be_are_told(
    told: Callable[..., Told], tuning: str, train: str, launch: str, message: str
) -> None:
    text = re.sub(r"tuning:.*\n(  .*\n)*", f"tuning: {tuning}\n", changed("2e-4", f"2e-4{train}"))
    [(_, found, said)] = told(f"{text}launch: {launch}\n")
    assert (found, message in said) == ("launch.sharding", True), said


def test_nothing_is_offloaded_that_is_not_divided(told: Callable[..., Told]) -> None:
    [(_, found, said)] = told(RECIPE + "launch: {offload: true}\n")
    assert (found, said) == ("launch.offload", "has no effect unless `launch.sharding` is `full` or `node`")


def test_what_all_ways_to_run_share_may_be_changed_alone(load: Load) -> None:
    launch = load(RECIPE + "launch: {sharding: full}\n").launch
    assert (launch.on, launch.sharding) == ("local", "full")


# --- what is not a recipe at all ---


@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        (RECIPE + "name: again\n", ":21", 'found duplicate key "name"'),
        (changed("rank: 8", "rank: 8\n  rank: 9"), ":13", 'found duplicate key "rank"'),
        (RECIPE + "\tx: 1\n", ":21", "is not YAML"),
        (changed("[rougeL, exact_match]", "[rougeL"), ":", "is not YAML"),
        (RECIPE + "---\nname: b\n", ":21", "another document"),
        (RECIPE + f"seed: {'9' * 5000}\n", "", "is not YAML"),
        (RECIPE.encode() + b"# \xff\n", ":21", "is not UTF-8"),
        (RECIPE.encode("utf-16"), ":1", "is not UTF-8"),
        (RECIPE.encode() + b"# \0\n", "", "special characters are not allowed"),
        ("", "", "must be a mapping"),
        ("- name: x\n", "", "must be a mapping"),
        ("just text\n", "", "must be a mapping"),
        ("%YAML 1.1\n---\n" + RECIPE, ":2", "is not YAML 1.2"),
        (changed("org/model", "!foo org/model"), ":2", "tags such as `!foo`"),
        (changed("org/model", '!!python/object/apply:os.system ["true"]'), ":2", "tags such as"),
        (RECIPE + "x: " + "[" * 500 + "]" * 500 + "\n", ":21", "nested too deeply"),
        (RECIPE + "#" * (1 << 20), "", "more than 1,048,576 bytes"),
    ],
)
def test_what_cannot_be_a_recipe_says_why(load: Load, content: str | bytes, where: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(content)
    assert message in caught.value.message
    assert f"recipe.yaml{where}" in str(caught.value.where)


def test_a_few_lines_of_aliases_do_not_fill_the_memory(load: Load) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
    )
    began = time.process_time()
    with pytest.raises(RecipeError, match="aliases"):
        load(bomb + RECIPE)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("knot", ["track=&a [*a]", "launch=&a {on: *a}", "seed=" + "[" * 500 + "]" * 500])
def test_an_override_is_held_to_the_same_limits(load: Load, knot: str) -> None:
    with pytest.raises(RecipeError):
        load(RECIPE, knot)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    if not os.path.exists("/dev/zero"):
        pytest.skip("needs /dev/zero")
    with pytest.raises(RecipeError, match="more than"):
        load_recipe("/dev/zero")


def test_a_folder_and_a_missing_file_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recpie.yaml")
    assert caught.value.hint == f"did you mean {tmp_path / 'recipe.yaml'}?"
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "nowhere" / "x.yaml")
    assert "tunesmith init" in str(caught.value.hint)


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
        recipe = load(template_text(name))
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


def test_thresholds_of_metrics_without_a_known_range_are_taken_as_they_are(load: Load) -> None:
    for metric in ("perplexity", "brevity:words"):
        text = RECIPE.replace("[rougeL, exact_match]", f"['{metric}', exact_match]")
        text = text.replace("primary: rougeL", f"primary: '{metric}'").replace(
            "name: viggo", "name: v\npromote: {model: m, min_gain: 5}"
        )
        text = text.replace("metric: exact_match", f"metric: '{metric}'").replace("max_drop: 0.02", "max_drop: 2")
        assert not list(remarks(load(text)))
    assert load(RECIPE.replace("name: viggo", "name: v\npromote: {model: m, min_gain: -0.5}"))
    careless = load(RECIPE.replace("name: viggo", "name: v\npromote: {model: m, min_gain: -2}"))
    assert [path for path, _ in remarks(careless)] == [("promote", "min_gain")]


# --- several mistakes, all told ---

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
def test_wrong_keys_and_contradictions_are_told_together(
    told: Callable[..., Told], overrides: list[str], keys: list[str]
) -> None:
    assert {key for _, key, _ in told(RECIPE, *overrides)} == set(keys)


def test_what_may_follow_from_a_wrong_value_is_not_told(told: Callable[..., Told]) -> None:
    found = told(RECIPE, "train.valid_metrics=5", "train.choose_by=rougeL", "evaluate.primary=accuracy")
    assert {key for _, key, _ in found} == {"train.valid_metrics", "evaluate.primary"}


def test_an_entry_of_a_list_is_named_in_words(load: Load) -> None:
    with pytest.raises(RecipeProblems, match=r"data\.source\.1\.splitt \(of the second entry\): unknown key"):
        load(RECIPE, f"data={TWO}")
