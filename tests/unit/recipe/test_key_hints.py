"""Hints for keys of other tools and for former keys: they suggest keys that exist."""

import re
from pathlib import Path

import pytest

from tunesmith.recipe.key_hints import BY_KEY, REPLACEMENTS, replacement_for
from tunesmith.recipe.load import Problem, RecipeProblems, list_key_paths, load_recipe

RECIPE = """\
name: x
model: {base: a/b}
data: {source: {file: rows.jsonl}, task: chat, prompt: "{q}", response: "{a}"}
tuning: {method: lora}
train: {learning_rate: 1e-4}
evaluate: {metrics: [rouge], primary: rougeL}
"""


def test_suggested_keys_exist() -> None:
    suggested = {key for replacement in BY_KEY.values() for key in replacement.keys}
    notes = [replacement.note for replacement in BY_KEY.values()]
    suggested |= {key for note in notes for key in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)`", note)}
    assert suggested - set(list_key_paths()) == set()


def test_no_key_is_in_two_rows_of_the_table() -> None:
    assert len([name for names, _, _ in REPLACEMENTS for name in names.split()]) == len(BY_KEY)


def test_no_key_of_the_table_is_a_key_of_the_recipe() -> None:
    assert [name for name in BY_KEY if name in list_key_paths()] == []


def problems(tmp_path: Path, *overrides: str, text: str = RECIPE) -> tuple[Problem, ...]:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeProblems) as caught:
        load_recipe(file, overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.lr=1e-3", "train.learning_rate"),
        ("lr=1e-3", "train.learning_rate"),
        ("learning_rate=1e-3", "train.learning_rate"),
        ("epochs=3", "train.epochs"),
        ("num_train_epochs=3", "train.epochs"),
        ("train.num-epochs=3", "train.epochs"),
        ("train.batch_size=4", "train.examples_per_step"),
        ("per_device_train_batch_size=4", "train.micro_batch"),
        ("train.gradient_accumulation_steps=4", "train.examples_per_step"),
        ("lora_r=8", "tuning.rank"),
        ("tuning.r=8", "tuning.rank"),
        ("rank=8", "tuning.rank"),
        ("target_modules=[q_proj]", "tuning.target"),
        ("train_on_eos=turn", "data.train_on_end"),
        ("test_datasets=[valid.jsonl]", "data.valid"),
        ("tokens=[<a>]", "model.add_tokens"),
        ("model.new_special_tokens=[<a>]", "model.add_tokens"),
        ("val_set_size=0.1", "data.valid"),
        ("data.test_file=x.csv", "data.test"),
        ("data.field_messages=conversations", "data.messages"),
        ("data.user_tag=human", "data.roles"),
        ("eval_steps=10", "train.valid_every_steps"),
        ("save_steps=10", "train.save_every_steps"),
        ("max_seq_length=512", "data.max_tokens_per_example"),
        ("model.max_length=512", "data.max_tokens_per_example"),
        ("warmup_ratio=0.1", "train.warmup_fraction"),
        ("lr_scheduler_type=cosine", "train.schedule"),
        ("bf16=true", "model.precision"),
        ("load_in_4bit=true", "tuning.method"),
        ("model_name_or_path=a/b", "model.base"),
        ("datasets=[{path: x}]", "data.source"),
        ("data.file=rows.csv", "data.source.file"),
        ("weight_decay=0.1", "train.weight_decay"),
        ("train.seed=1", "seed"),
        ("report_to=wandb", "trackers"),
        ("deepspeed=zero3.json", "launch.sharding"),
        ("gradient_checkpointing=true", "train.activation_checkpointing"),
        ("min_gain=0.1", "promote.min_gain"),
        ("data.near_copy=0.9", "data.near_duplicate_threshold"),
        ("data.prompt_tokens=8", "data.sample_prefix_tokens"),
        ("train.choose_by=rougeL", "train.select_best_by"),
        ("launch.starter=torchrun", "launch.launcher"),
        ("launch.patience_minutes=3", "launch.timeout_minutes"),
        ("launch.warning_minutes=3", "launch.grace_minutes"),
        ("launch.link_gb_per_second=3", "launch.intra_node_gb_per_second"),
        ("launch.network_gb_per_second=3", "launch.inter_node_gb_per_second"),
        ("track=[wandb]", "trackers"),
    ],
)
def test_foreign_or_former_key_suggests_the_key_to_use(override: str, key: str, tmp_path: Path) -> None:
    [problem] = problems(tmp_path, override)
    assert (problem.code, problem.where) == ("unknown-key", override)
    assert f"`{key}`" in problem.message
    assert str(problem) == f"{override}: {problem.message}", "the override already names the key"


def test_foreign_keys_in_the_file_are_reported_with_their_line(tmp_path: Path) -> None:
    mistakes = problems(tmp_path, text=RECIPE + "output_dir: out\ntrain_on_inputs: false\n")
    assert [(problem.where, problem.key) for problem in mistakes] == [
        ("recipe.yaml:7", "output_dir"),
        ("recipe.yaml:8", "train_on_inputs"),
    ]


@pytest.mark.parametrize(("override", "value"), [("data.too_long=cut", "truncate"), ("data.leakage=stop", "error")])
def test_former_value_suggests_the_present_one(override: str, value: str, tmp_path: Path) -> None:
    [problem] = problems(tmp_path, override)
    assert problem.code == "wrong-value"
    assert problem.message.endswith(f"`{value}`")


def test_misspelt_key_suggests_the_nearest(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, "train.lerning_rate=1")
    assert "`learning_rate`" in problem.message
    assert replacement_for(("train", "lerning_rate")) is None
    assert replacement_for((0,)) is None


def test_key_of_another_kind_of_the_section_is_not_suggested(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, "data.text=body")
    assert "`data.text`" not in problem.message
