"""Contradictions between keys: a setting without effect is an error, an unlikely one a remark."""

import re

import pytest
from tests.unit.recipe.conftest import RECIPE, Load, Problems, changed, line_of

from tunesmith.data.split import assign_split
from tunesmith.recipe.also import recipe_of_set
from tunesmith.recipe.validation import find_remarks


@pytest.mark.parametrize(
    ("old", "new", "key", "code", "named"),
    [
        ("primary: rougeL", "primary: rouge1", "evaluate.primary", "not-measured", "`rouge1`"),
        ("metric: exact_match", "metric: rouge2", "evaluate.guards", "not-measured", "`rouge2`"),
        ("primary: rougeL", "primary: rougeL\n  database: x.db", "evaluate.database", "no-effect", "`execution`"),
        ("primary: rougeL", "primary: rougeL\n  sampling: {top_p: 0.9, seed: 2}", "evaluate.sampling", "no-effect",
         "`top_p` and `seed`"),
        ("primary: rougeL", "primary: rougeL\n  sampling: {temperature: 1}\n  beams: 2", "evaluate.sampling",
         "contradiction", "`beams`"),
        ("primary: rougeL", "primary: rougeL\n  samples: 4", "evaluate.samples", "no-effect", "temperature"),
        ("primary: rougeL", "primary: rougeL\n  stop: ['.']\n  beams: 2", "evaluate.stop", "contradiction", "`beams`"),
        ("primary: rougeL", "primary: rougeL\n  stop: ['']", "evaluate.stop", "wrong-value", "empty"),
        ("max_drop: 0.02", "max_drop: 2", "evaluate.guards", "unreachable-threshold", "0.02"),
        ("max_drop: 0.02", "max_drop: 1", "evaluate.guards", "unreachable-threshold", "max_drop"),
        ("name: viggo", "name: viggo\npromote: {model: m, min_gain: 5}", "promote.min_gain", "unreachable-threshold",
         "0.05"),
        ("name: viggo", "name: viggo\npromote: {model: m, min_gain: 1}", "promote.min_gain", "unreachable-threshold",
         "gain"),
        ("valid: 0.1", "test: 0", "data.split.test", "contradiction", "0"),
        ("valid: 0.1", "valid: 0.9", "data.split", "contradiction", "`valid` and `test`"),
        ("valid: 0.1", "column: s\n    valid: 0.1", "data.split", "no-effect", "`column`"),
        ("2e-4", "2e-4\n  micro_batch: 9", "train.micro_batch", "no-effect", "train.examples_per_step"),
        ("method: lora\n  rank: 8", "method: full\n  freeze: [layers/0]", "tuning.freeze.0", "wrong-value", "layers/0"),
        ("2e-4", "2e-4\n  decay_fraction: 0.1", "train", "no-effect", "`schedule: wsd`"),
        ("2e-4", "2e-4\n  schedule: wsd\n  warmup_fraction: 0.9", "train", "contradiction", "`decay_fraction`"),
        ("2e-4", "2e-4\n  micro_batch: 0", "train.micro_batch", "wrong-value", "1"),
        ('response: "{ref}"', "messages: m", "data", "contradiction", "`messages`"),
        ('  response: "{ref}"\n', "", "data", "missing-key", "`response`"),
        ("task: chat", "task: chat\n  train_on: last", "data", "no-effect", "`train_on`"),
        ("task: chat", "task: chat\n  roles: {agent: assistant}", "data", "no-effect", "`roles`"),
        ("task: chat", "task: chat\n  template_arguments: {tools: []}", "data.template_arguments", "contradiction",
         "`tools`"),
        ("task: chat", "task: chat\n  template_date: today", "data.template_date", "wrong-value", "2026-05-01"),
        ("task: chat", "task: chat\n  template_date: 86400", "data.template_date", "wrong-value", "2026-05-01"),
        ("task: chat", "task: chat\n  too_long: split", "data.too_long", "contradiction", "`task: text`"),
        ("file: rows.csv", "file: rows.csv, loss_weight: 2", "data.source", "no-effect", "`loss_weight`"),
        ("file: rows.csv", "file: rows.csv, weight: 2", "data.source", "no-effect", "`weight`"),
        ("2e-4", "2e-4\n  optimizer: sgd\n  beta2: 0.9", "train.beta2", "no-effect", "`sgd`"),
        ("2e-4", "2e-4\n  micro_batch: 2\n  micro_batch_tokens: 9", "train.micro_batch_tokens", "no-effect",
         "train.micro_batch"),
    ],
)  # fmt: skip
def test_contradicting_settings_are_errors(
    problems: Problems, old: str, new: str, key: str, code: str, named: str
) -> None:
    [problem] = problems(changed(old, new))
    assert (problem.key, problem.code, named in problem.message) == (key, code, True), problem
    assert problem.where.startswith("recipe.yaml:")


def test_samples_need_a_metric_of_answers(problems: Problems) -> None:
    text = changed("[rougeL, exact_match]", "[perplexity]").replace("primary: rougeL", "primary: perplexity")
    text = text[: text.index("  guards:")] + "  sampling: {temperature: 1}\n  samples: 4\n"
    [problem] = problems(text)
    assert (problem.key, problem.code) == ("evaluate.samples", "no-effect")


SET = "{name: x, source: {file: x.csv}, task: completion, prompt: '{a}', response: '{b}'"


@pytest.mark.parametrize(
    ("keys", "key", "code", "named"),
    [
        ("metrics: [bleu], primary: chrf, max_drop: 0.1", "0.primary", "not-measured", "`chrf`"),
        ("metrics: [rouge], max_drop: 0.1", "0.primary", "not-measured", "rouge1, rouge2"),
        ("metrics: [execution], max_drop: 0.1", "0.metrics", "missing-key", "evaluate.database"),
        ("metrics: [blue], max_drop: 0.1", "0.metrics", "unknown-metric", "`bleu`"),
        ("metrics: [bleu], max_drop: 3", "0.max_drop", "unreachable-threshold", "0.03"),
        ("metrics: [perplexity], max_drop: 3, max_new_tokens: 9", "0.max_new_tokens", "no-effect", "answers"),
        ("metrics: [bleu], max_drop: 0.1, too_long: split", "0.too_long", "contradiction", "`task: text`"),
        ("metrics: [bleu], max_drop: 0.1, train_rows: 5", "0", "no-effect", "`train_rows`"),
        ("metrics: [bleu], max_drop: 0.1, split: {test: 0.5}", "0", "no-effect", "`split.test`"),
        (f"metrics: [bleu], max_drop: 0.1}}, {SET}, metrics: [chrf], max_drop: 0.1", "", "wrong-value", "`x`"),
    ],
)
def test_wrong_further_sets_are_errors(problems: Problems, keys: str, key: str, code: str, named: str) -> None:
    text = f"{RECIPE}  also: [{SET}, {keys}}}]\n"
    [problem] = problems(text)
    assert (problem.key, problem.code) == (f"evaluate.also{'.' * bool(key)}{key}", code)
    assert named in problem.message
    assert problem.where == line_of(text, "also:")


@pytest.mark.parametrize("key", ["weight", "loss_weight"])
def test_weights_of_the_sources_of_a_further_set_are_errors(problems: Problems, key: str) -> None:
    weighted = SET.replace("{file: x.csv}", f"[{{file: x.csv, {key}: 2}}, {{file: y.csv}}]")
    [problem] = problems(f"{RECIPE}  also: [{weighted}, metrics: [bleu], max_drop: 0.1}}]\n")
    assert (problem.key, problem.code) == ("evaluate.also.0", "no-effect")
    assert f"`{key}`" in problem.message


def test_a_further_set_is_a_recipe_whose_rows_are_all_test_rows(load: Load) -> None:
    recipe = load(f"{RECIPE}  also: [{SET}, metrics: [bleu, chrf], primary: chrf, max_drop: 0.1, split: {{by: a}}}}]\n")
    [entry] = recipe.evaluate.also
    own = recipe_of_set(recipe, entry)
    assert (own.data.task, own.data.split.by, own.evaluate.primary) == ("completion", "a", "chrf")
    assert (own.evaluate.guards, own.evaluate.also, own.evaluate.confidence) == ((), (), recipe.evaluate.confidence)
    assert {
        assign_split(str(row), valid=own.data.split.valid, test=own.data.split.test, seed=0) for row in range(99)
    } == {"test"}


def test_execution_needs_a_database(problems: Problems) -> None:
    [problem] = problems(changed("[rougeL, exact_match]", "[rougeL, exact_match, execution]"))
    assert (problem.where, problem.key, problem.code) == ("recipe.yaml:16", "evaluate.metrics", "missing-key")
    assert "evaluate.database" in problem.message


@pytest.mark.parametrize(
    "setting",
    [
        "valid_every_steps: 5",
        "valid_metrics: [rougeL]",
        "select_best_by: token_accuracy",
        "stop_early: {after_validations: 2}",
    ],
)
def test_validation_settings_have_no_effect_without_valid_rows(problems: Problems, setting: str) -> None:
    [problem] = problems(changed("valid: 0.1", "valid: 0").replace("2e-4", f"2e-4\n  {setting}"))
    assert (problem.key, problem.code) == (f"train.{setting.partition(':')[0]}", "no-effect")
    assert "data.split.valid" in problem.message


@pytest.mark.parametrize(
    ("train", "code", "named"),
    [
        ("valid_rows: 8", "no-effect", "train.valid_metrics"),
        ("valid_metrics: [perplexity]", "no-effect", "loss"),
        ("valid_metrics: [loss]", "no-effect", "loss"),
        ("valid_metrics: [token_accuracy]", "no-effect", "token_accuracy"),
        ("valid_metrics: [execution]", "missing-key", "evaluate.database"),
        ("valid_rows: 0", "wrong-value", "1"),
        ("select_best_by: rougeL", "not-measured", "loss, token_accuracy"),
        ("select_best_by: perplexity", "not-measured", "`perplexity`"),
    ],
)
def test_validation_metrics_are_checked(problems: Problems, train: str, code: str, named: str) -> None:
    text, key = changed("2e-4", f"2e-4\n  {train}"), train.partition(":")[0]
    [problem] = problems(text)
    assert (problem.where, problem.key, problem.code) == (line_of(text, f"  {key}:"), f"train.{key}", code)
    assert named in problem.message


def test_unknown_validation_metric_suggests_the_nearest(problems: Problems) -> None:
    [problem] = problems(changed("2e-4", "2e-4\n  valid_metrics: [rogueL]"))
    assert problem.key == "train.valid_metrics"
    assert "`rougeL`" in problem.message


def test_all_mistakes_of_validation_are_reported_at_once(problems: Problems) -> None:
    text = changed("2e-4", "2e-4\n  valid_metrics: [perplexity, rouge, execution]\n  select_best_by: bleu")
    text = text.replace("valid: 0.1", "valid: 0")
    mistakes = problems(text)
    metrics, selection = line_of(text, "  valid_metrics:"), line_of(text, "  select_best_by:")
    assert sorted((problem.where, problem.key) for problem in mistakes) == [
        *[(metrics, "train.valid_metrics")] * 3,
        *[(selection, "train.select_best_by")] * 2,
    ]
    assert any("rouge1, rouge2, rougeL, rougeLsum" in problem.message for problem in mistakes)


@pytest.mark.parametrize("by", ["loss", "token_accuracy", "rouge2", "json_valid", "mine:words"])
def test_every_metric_of_validation_can_select_the_best(load: Load, by: str) -> None:
    text = changed("2e-4", f"2e-4\n  valid_metrics: [rouge, json_valid, 'mine:words']\n  select_best_by: '{by}'")
    assert load(text).train.select_best_by == by


def test_database_may_serve_validation_alone(load: Load) -> None:
    text = changed("2e-4", "2e-4\n  valid_metrics: [execution]")
    assert load(text.replace("primary: rougeL", "primary: rougeL\n  database: x.db")).evaluate.database == "x.db"


@pytest.mark.parametrize(
    ("tuning", "train", "launch", "code", "named"),
    [
        ("{method: qlora, bits: 8}", "", "{sharding: full}", "sharding-unsupported", "8-bit"),
        ("{method: full}", "\n  optimizer: adafactor", "{sharding: node}", "sharding-unsupported", "`adafactor`"),
        ("{method: full}", "", "{on: slurm, sharding: full}", "no-effect", "`full`"),
    ],
)
def test_sharding_that_is_unsupported_or_without_effect_is_an_error(
    problems: Problems, tuning: str, train: str, launch: str, code: str, named: str
) -> None:
    text = re.sub(r"tuning:.*\n(  .*\n)*", f"tuning: {tuning}\n", changed("2e-4", f"2e-4{train}"))
    [problem] = problems(f"{text}launch: {launch}\n")
    assert (problem.key, problem.code, named in problem.message) == ("launch.sharding", code, True), problem


def test_muon_does_not_update_offloaded_matrices(problems: Problems) -> None:
    full = re.sub(r"tuning:.*\n(  .*\n)*", "tuning: {method: full}\n", changed("2e-4", "2e-4\n  optimizer: muon"))
    [problem] = problems(full + "launch: {sharding: full, offload: true}\n")
    assert (problem.key, problem.code) == ("launch.offload", "sharding-unsupported")


def test_offload_has_no_effect_without_sharding(problems: Problems) -> None:
    [problem] = problems(RECIPE + "launch: {offload: true}\n")
    assert (problem.key, problem.code) == ("launch.offload", "no-effect")


def test_launch_is_local_if_no_key_needs_another_kind(load: Load) -> None:
    launch = load(RECIPE + "launch: {sharding: full}\n").launch
    assert (launch.on, launch.sharding) == ("local", "full")


def test_thresholds_of_unbounded_metrics_are_accepted(load: Load) -> None:
    for metric in ("perplexity", "brevity:words"):
        text = RECIPE.replace("[rougeL, exact_match]", f"['{metric}', exact_match]")
        text = text.replace("primary: rougeL", f"primary: '{metric}'").replace(
            "name: viggo", "name: v\npromote: {model: m, min_gain: 5}"
        )
        text = text.replace("metric: exact_match", f"metric: '{metric}'").replace("max_drop: 0.02", "max_drop: 2")
        assert not list(find_remarks(load(text)))
    assert load(RECIPE.replace("name: viggo", "name: v\npromote: {model: m, min_gain: -0.5}"))
    lenient = load(RECIPE.replace("name: viggo", "name: v\npromote: {model: m, min_gain: -2}"))
    assert [path for path, _ in find_remarks(lenient)] == [("promote", "min_gain")]


def test_answers_without_an_end_are_remarked(load: Load) -> None:
    endless = RECIPE.replace("task: chat", "task: chat\n  train_on_end: false")
    for text, names_stop in ((endless, False), (endless.replace("primary:", 'stop: ["\\n"]\n  primary:'), True)):
        [(path, remark)] = find_remarks(load(text))
        assert path == ("data", "train_on_end")
        assert ("evaluate.stop" in remark) == names_stop
