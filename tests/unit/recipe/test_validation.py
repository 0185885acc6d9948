"""Settings that are fine alone and not together: each has an effect, or is an error or a remark."""

import re
from collections.abc import Callable

import pytest
from tests.unit.recipe.conftest import RECIPE, Load, Told, changed, line_of

from tunesmith.recipe.validation import find_remarks


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
        (
            "select_best_by: rougeL",
            "select_best_by",
            "`rougeL` is not measured: name it in train.valid_metrics (loss, token_",
        ),
        ("select_best_by: perplexity", "select_best_by", "is not measured"),
    ],
)
def test_what_validation_cannot_measure_is_told(told: Callable[..., Told], train: str, key: str, message: str) -> None:
    text = changed("2e-4", f"2e-4\n  {train}")
    [(where, found, said)] = told(text)
    assert (where, found) == (line_of(text, f"  {key}:"), f"train.{key}")
    assert message in said


def test_all_that_is_wrong_with_validation_is_told_at_once(told: Callable[..., Told]) -> None:
    text = changed("2e-4", "2e-4\n  valid_metrics: [perplexity, rouge, execution]\n  select_best_by: bleu")
    text = text.replace("valid: 0.1", "valid: 0")
    where, other = line_of(text, "  valid_metrics:"), line_of(text, "  select_best_by:")
    assert sorted((line, key) for line, key, _ in told(text)) == [
        *[(where, "train.valid_metrics")] * 3,
        *[(other, "train.select_best_by")] * 2,
    ]
    assert any("known" not in said and "rouge1, rouge2, rougeL, rougeLsum" in said for *_, said in told(text))


@pytest.mark.parametrize("by", ["loss", "token_accuracy", "rouge2", "json_valid", "mine:words"])
def test_whatever_validation_measures_may_choose(load: Load, by: str) -> None:
    text = changed("2e-4", f"2e-4\n  valid_metrics: [rouge, json_valid, 'mine:words']\n  select_best_by: '{by}'")
    assert load(text).train.select_best_by == by


def test_a_database_for_validation_alone_has_an_effect(load: Load) -> None:
    text = changed("2e-4", "2e-4\n  valid_metrics: [execution]")
    assert load(text.replace("primary: rougeL", "primary: rougeL\n  database: x.db")).evaluate.database == "x.db"


@pytest.mark.parametrize("setting", ["valid_metrics: [rougeL]", "select_best_by: token_accuracy"])
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


def test_thresholds_of_metrics_without_a_known_range_are_taken_as_they_are(load: Load) -> None:
    for metric in ("perplexity", "brevity:words"):
        text = RECIPE.replace("[rougeL, exact_match]", f"['{metric}', exact_match]")
        text = text.replace("primary: rougeL", f"primary: '{metric}'").replace(
            "name: viggo", "name: v\npromote: {model: m, min_gain: 5}"
        )
        text = text.replace("metric: exact_match", f"metric: '{metric}'").replace("max_drop: 0.02", "max_drop: 2")
        assert not list(find_remarks(load(text)))
    assert load(RECIPE.replace("name: viggo", "name: v\npromote: {model: m, min_gain: -0.5}"))
    careless = load(RECIPE.replace("name: viggo", "name: v\npromote: {model: m, min_gain: -2}"))
    assert [path for path, _ in find_remarks(careless)] == [("promote", "min_gain")]
