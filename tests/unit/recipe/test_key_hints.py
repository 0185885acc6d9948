"""The error for another tool's key names our key, and every key it names exists."""

import re
from pathlib import Path

import pytest

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.key_hints import BY_KEY, REPLACEMENTS, replacement_for
from tunesmith.recipe.load import list_key_paths, load_recipe

RECIPE = """\
name: x
model: {base: a/b}
data: {source: {file: rows.jsonl}, task: chat, prompt: "{q}", response: "{a}"}
tuning: {method: lora}
train: {learning_rate: 1e-4}
evaluate: {metrics: [rouge], primary: rougeL}
"""


def test_every_key_that_is_named_exists() -> None:
    named = {key for ours in BY_KEY.values() for key in ours.keys}
    named |= {key for ours in BY_KEY.values() for key in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)`", ours.note)}
    assert named - set(list_key_paths()) == set()


def test_no_word_is_in_two_rows_of_the_table() -> None:
    assert len([word for words, _, _ in REPLACEMENTS for word in words.split()]) == len(BY_KEY)


def test_no_word_is_a_key_of_ours_in_its_own_place() -> None:
    assert [word for word in BY_KEY if word in list_key_paths()] == []


def told(tmp_path: Path, *overrides: str, text: str = RECIPE) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    return caught.value.message


@pytest.mark.parametrize(
    ("override", "ours"),
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
        ("val_set_size=0.1", "data.split.valid"),
        ("data.test={file: x.csv}", "data.split.column"),
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
def test_a_word_of_another_tool_is_answered_with_ours(override: str, ours: str, tmp_path: Path) -> None:
    message = told(tmp_path, override)
    assert f"`{ours}`" in message
    assert message.startswith(f"{override}: unknown key; ")  # the key is said once


def test_words_in_the_file_are_answered_with_their_line(tmp_path: Path) -> None:
    message = told(tmp_path, text=RECIPE + "output_dir: out\ntrain_on_inputs: false\n")
    assert "recipe.yaml:7: output_dir: " in message
    assert "recipe.yaml:8: train_on_inputs: " in message


@pytest.mark.parametrize(("override", "ours"), [("data.too_long=cut", "truncate"), ("data.leakage=stop", "error")])
def test_a_former_value_is_answered_with_the_present_one(override: str, ours: str, tmp_path: Path) -> None:
    assert told(tmp_path, override).endswith(f"; here it is `{ours}`")


def test_a_typo_is_still_a_typo(tmp_path: Path) -> None:
    assert "did you mean `learning_rate`?" in told(tmp_path, "train.lerning_rate=1")
    assert replacement_for(("train", "lerning_rate")) is None
    assert replacement_for((0,)) is None


def test_a_key_of_another_kind_of_the_section_is_not_suggested_there(tmp_path: Path) -> None:
    assert "did you mean `data.text`" not in told(tmp_path, "data.text=body")
