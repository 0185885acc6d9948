"""Checks of the base model, the rows and the machine, by `plan` and before `run` writes anything."""

import json
from pathlib import Path
from shutil import copytree

import pytest
from tests.support.errors import raises
from tests.support.plans import other_warnings
from tests.support.tiny import recipe as write_recipe
from tests.support.tiny import save_plain_model, save_seq2seq

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.pipeline.runner import run_recipe
from tunesmith.plan.run_plan import plan_run


@pytest.fixture
def base(tmp_path: Path, tiny: Path) -> Path:
    return copytree(tiny, tmp_path / "model")


def _grow_tokenizer(folder: Path, *tokens: str) -> int:
    """Add tokens to a tokenizer beyond the 320 embedding rows of its model, and return its size."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"filler{i}" for i in range(320 - len(tokenizer))] + list(tokens))
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def test_row_with_a_token_beyond_the_embedding_is_refused(tmp_path: Path, base: Path) -> None:
    assert _grow_tokenizer(base, "number") == 321  # a word that every row has
    path = write_recipe(tmp_path, base)
    for act in (plan_run, lambda recipe: run_recipe(recipe, out=tmp_path / "run")):
        with pytest.raises(RecipeError) as error:
            act(path)
        assert "token 320" in error.value.message


def test_tokenizer_larger_than_the_embedding_is_a_warning_if_no_row_uses_the_difference(
    tmp_path: Path, base: Path
) -> None:
    path = write_recipe(tmp_path, base)
    assert other_warnings(plan_run(path)) == []
    _grow_tokenizer(base, "zebra", "gnu")
    plan = plan_run(path)
    [warning] = other_warnings(plan)
    assert "322 tokens" in warning
    assert f"warning  {warning}" in str(plan)


def test_tokens_of_chat_markup_get_embedding_rows(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, save_plain_model(tmp_path / "plain", "llama"))
    assert other_warnings(plan_run(path, ["model.chat_markup=chatml"])) == []
    biased = write_recipe(tmp_path, save_plain_model(tmp_path / "biased", "phi"))
    with pytest.raises(RecipeError) as error:
        plan_run(biased, ["model.chat_markup=chatml"])
    assert "bias" in error.value.message
    plan_run(biased, ["model.chat_markup=chatml", "tuning={method: full}"])


def test_added_tokens_are_counted_and_unseen_ones_are_a_warning(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, save_plain_model(tmp_path / "plain", "llama"))
    answers = "data={source: {file: rows.jsonl}, task: completion, prompt: '{question} <sql>', response: '{answer}'}"
    plan = plan_run(path, [answers, "model.add_tokens=[<sql>, number, zebra, gnu]"])
    assert plan.new_tokens == {"<sql>": plan.rows.counts["train"], "number": plan.rows.counts["train"],
                               "gnu": 0, "zebra": 0}  # fmt: skip
    [warning] = other_warnings(plan)
    assert "`gnu`, `zebra`" in warning
    assert "added    4 tokens" in str(plan)
    assert plan.to_json()["new_tokens"]["zebra"] == 0


@pytest.mark.parametrize("frozen", ["embed_tokens", "lm_head"])
def test_frozen_rows_of_added_tokens_are_refused(tmp_path: Path, frozen: str) -> None:
    path = write_recipe(tmp_path, save_plain_model(tmp_path / "plain", "llama"))
    changes = ["data.task=completion", f"tuning={{method: full, freeze: [{frozen}]}}"]
    plan_run(path, changes)
    with raises(RecipeError, "contradiction", frozen, where="tuning.freeze"):
        plan_run(path, [*changes, "model.add_tokens=[number]"])


def test_added_tokens_of_an_encoder_decoder_need_full_tuning(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, save_seq2seq(tmp_path / "t5"))
    changes = ["data.task=seq2seq", "model.add_tokens=[number]"]
    with raises(RecipeError, "untrainable-rows", where="model"):
        plan_run(path, changes)
    assert plan_run(path, [*changes, "tuning={method: full}"]).new_tokens["number"] > 0


@pytest.mark.parametrize("target", ["[nope]", "[q_proj, nope]"])
def test_unknown_target_module_is_named(tmp_path: Path, tiny: Path, target: str) -> None:
    with pytest.raises(RecipeError) as error:
        plan_run(write_recipe(tmp_path, tiny), [f"tuning.target={target}"])
    assert "nope" in error.value.message


@pytest.mark.parametrize("tuning", ["{method: full}", "{method: lora}", "{method: qlora}"])
def test_quantized_base_is_refused(tmp_path: Path, base: Path, tuning: str) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(RecipeError) as error:
        plan_run(write_recipe(tmp_path, base), [f"tuning={tuning}"])
    assert "gptq" in error.value.message


def test_truncated_weights_are_refused(tmp_path: Path, base: Path) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedFile) as error:
        plan_run(write_recipe(tmp_path, base))
    assert error.value.where == str(file)


def test_weights_as_pickle_are_refused(tmp_path: Path, base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(RecipeError) as error:
        plan_run(write_recipe(tmp_path, base))
    assert error.value.where == str(base)
    assert "save_pretrained" in str(error.value.hint)


def test_configuration_without_a_vocabulary_is_refused(tmp_path: Path, base: Path) -> None:
    (base / "config.json").write_text('{"model_type": "nope"}')
    with pytest.raises(RecipeError) as error:
        plan_run(write_recipe(tmp_path, base))
    assert "vocab_size" in error.value.message


def test_answer_longer_than_the_positions_is_refused(tmp_path: Path, tiny: Path) -> None:
    path = write_recipe(tmp_path, tiny)
    positions = json.loads((tiny / "config.json").read_text())["max_position_embeddings"]
    with pytest.raises(RecipeError) as error:
        plan_run(path, [f"evaluate.max_new_tokens={positions}"])
    assert f"{positions} positions" in error.value.message
    [warning] = other_warnings(plan_run(path, [f"data.max_tokens_per_example={positions + 1}"]))
    assert warning.startswith("data.max_tokens_per_example")


def test_rows_without_room_for_an_answer_are_refused_before_training(tmp_path: Path, tiny: Path) -> None:
    path, positions = write_recipe(tmp_path, tiny), 512
    prompt_tokens = 24  # at most, in these rows
    with pytest.raises(RecipeError) as error:
        plan_run(path, [f"evaluate.max_new_tokens={positions - 2}"])
    assert "8 of 8 test rows" in error.value.message
    assert error.value.where == "evaluate.max_new_tokens"
    likelihoods = ["evaluate.metrics=[perplexity]", "evaluate.primary=perplexity"]
    assert other_warnings(plan_run(path, [f"evaluate.max_new_tokens={positions - 2}", *likelihoods])) == []
    assert other_warnings(plan_run(path, [f"evaluate.max_new_tokens={positions - 10 * prompt_tokens}"])) == []
    with pytest.raises(RecipeError) as error:
        plan_run(path, [f"evaluate.max_new_tokens={positions - 2}", *likelihoods, "train.valid_metrics=[chrf]"])
    assert "valid rows" in error.value.message
    with pytest.raises(RecipeError) as error:
        run_recipe(path, [f"evaluate.max_new_tokens={positions - 2}"], out=tmp_path / "run")
    assert "8 of 8 test rows" in error.value.message
    assert not (tmp_path / "run" / "train").exists()


def test_file_in_place_of_the_run_folder_is_refused(tmp_path: Path, tiny: Path) -> None:
    path, taken = write_recipe(tmp_path, tiny), tmp_path / "taken"
    taken.write_text("a file")
    for out in (taken, taken / "below"):
        for act in (plan_run, run_recipe):
            with pytest.raises(RecipeError) as error:
                act(path, out=out)
            assert str(taken) in str(error.value)
    assert taken.read_text() == "a file"


def test_metric_without_anything_to_count_is_refused_before_training(tmp_path: Path, tiny: Path) -> None:
    path = write_recipe(tmp_path, tiny)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({**json.loads(line), "answer": ":-)"}) + "\n" for line in rows.open()))
    for act in (plan_run, lambda recipe: run_recipe(recipe, out=tmp_path / "run")):
        with pytest.raises(RecipeError) as error:
            act(path)
        assert "8 of 8" in error.value.message
        assert error.value.where == "evaluate.primary"
    assert not (tmp_path / "run" / "train").exists()
    [warning] = other_warnings(plan_run(path, ["evaluate.primary=exact_match"]))
    assert "rougeL" in warning
