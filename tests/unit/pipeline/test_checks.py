"""`plan` reports what it knows of the base and the machine, and computes nothing."""

import json
from pathlib import Path
from shutil import copytree

import pytest
from tests.support.tiny import recipe as write_recipe
from tests.support.tiny import save_plain_model

from tunesmith.core.errors import DamagedFile, RecipeError
from tunesmith.pipeline.runner import run_recipe
from tunesmith.plan.run_plan import plan_run


@pytest.fixture
def base(tmp_path: Path, tiny: Path) -> Path:
    return copytree(tiny, tmp_path / "model")


def _grow_tokenizer(folder: Path, *tokens: str) -> int:
    """Add tokens to a folder's tokenizer until it has more than the model's 320 rows; return its size."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"filler{i}" for i in range(320 - len(tokenizer))] + list(tokens))
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def test_rows_with_tokens_beyond_the_embedding_are_refused_by_plan_and_by_train(tmp_path: Path, base: Path) -> None:
    assert _grow_tokenizer(base, "number") == 321  # a word that every row has
    path = write_recipe(tmp_path, base)
    for act in (plan_run, lambda recipe: run_recipe(recipe, out=tmp_path / "run")):
        with pytest.raises(RecipeError, match="writes token 320, and its embedding has 320 rows"):
            act(path)


def test_a_tokenizer_that_is_larger_than_the_embedding_is_a_warning_if_no_row_needs_it(
    tmp_path: Path, base: Path
) -> None:
    path = write_recipe(tmp_path, base)
    assert plan_run(path).warnings == ()
    _grow_tokenizer(base, "zebra", "gnu")
    plan = plan_run(path)
    [warning] = plan.warnings
    assert "322 tokens" in warning
    assert f"warning  {warning}" in str(plan)


def test_tokens_that_chat_markup_adds_are_not_beyond(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, save_plain_model(tmp_path / "plain", "llama"))
    assert plan_run(path, ["model.chat_markup=chatml"]).warnings == ()
    biased = write_recipe(tmp_path, save_plain_model(tmp_path / "biased", "phi"))
    with pytest.raises(RecipeError, match="bias"):
        plan_run(biased, ["model.chat_markup=chatml"])
    plan_run(biased, ["model.chat_markup=chatml", "tuning={method: full}"])


@pytest.mark.parametrize("target", ["[nope]", "[q_proj, nope]"])
def test_module_names_are_checked_one_by_one(tmp_path: Path, tiny: Path, target: str) -> None:
    with pytest.raises(RecipeError, match="no module of the model: nope"):
        plan_run(write_recipe(tmp_path, tiny), [f"tuning.target={target}"])


@pytest.mark.parametrize("tuning", ["{method: full}", "{method: lora}", "{method: qlora}"])
def test_a_base_quantized_by_others_is_refused(tmp_path: Path, base: Path, tuning: str) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(RecipeError, match="quantized already"):
        plan_run(write_recipe(tmp_path, base), [f"tuning={tuning}"])


def test_a_truncated_file_of_weights_is_reported_by_plan(tmp_path: Path, base: Path) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match="its header says"):
        plan_run(write_recipe(tmp_path, base))


def test_weights_as_pickle_are_refused_with_what_to_do(tmp_path: Path, base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="only as pickle") as caught:
        plan_run(write_recipe(tmp_path, base))
    assert caught.value.where == str(base)
    assert "save_pretrained" in str(caught.value.hint)


def test_a_configuration_without_a_vocabulary_is_refused(tmp_path: Path, base: Path) -> None:
    (base / "config.json").write_text('{"model_type": "nope"}')
    with pytest.raises(RecipeError, match="names no vocab_size"):
        plan_run(write_recipe(tmp_path, base))


def test_an_answer_longer_than_the_positions_is_refused(tmp_path: Path, tiny: Path) -> None:
    path = write_recipe(tmp_path, tiny)
    positions = json.loads((tiny / "config.json").read_text())["max_position_embeddings"]
    with pytest.raises(RecipeError, match=f"knows {positions} positions"):
        plan_run(path, [f"evaluate.max_new_tokens={positions}"])
    [warning] = plan_run(path, [f"data.max_tokens_per_example={positions + 1}"]).warnings
    assert warning.startswith("data.max_tokens_per_example")


def test_rows_without_room_for_an_answer_are_counted_beforehand(tmp_path: Path, tiny: Path) -> None:
    path, positions = write_recipe(tmp_path, tiny), 512
    prompts = 24  # tokens that a prompt of these rows has at most
    with pytest.raises(RecipeError, match="8 of 8 test rows have no room") as caught:
        plan_run(path, [f"evaluate.max_new_tokens={positions - 2}"])
    assert caught.value.where == "evaluate.max_new_tokens"
    likelihoods = ["evaluate.metrics=[perplexity]", "evaluate.primary=perplexity"]
    assert plan_run(path, [f"evaluate.max_new_tokens={positions - 2}", *likelihoods]).warnings == ()
    assert plan_run(path, [f"evaluate.max_new_tokens={positions - 10 * prompts}"]).warnings == ()
    with pytest.raises(RecipeError, match="valid rows have no room"):
        plan_run(path, [f"evaluate.max_new_tokens={positions - 2}", *likelihoods, "train.valid_metrics=[chrf]"])
    with pytest.raises(RecipeError, match="8 of 8 test rows have no room"):
        run_recipe(path, [f"evaluate.max_new_tokens={positions - 2}"], out=tmp_path / "run")
    assert not (tmp_path / "run" / "train").exists()


def test_a_file_in_place_of_the_run_folder_is_refused_by_plan_and_run(tmp_path: Path, tiny: Path) -> None:
    path, taken = write_recipe(tmp_path, tiny), tmp_path / "taken"
    taken.write_text("a file")
    for out in (taken, taken / "below"):
        for act in (plan_run, run_recipe):
            with pytest.raises(RecipeError, match="file") as refused:
                act(path, out=out)
            assert refused.value.exit_code == 2
    assert taken.read_text() == "a file"


def test_a_metric_without_anything_to_count_is_refused_beforehand(tmp_path: Path, tiny: Path) -> None:
    path = write_recipe(tmp_path, tiny)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({**json.loads(line), "answer": ":-)"}) + "\n" for line in rows.open()))
    with pytest.raises(RecipeError, match="8 of 8 rows") as caught:
        plan_run(path)
    assert caught.value.where == "evaluate.primary"
    with pytest.raises(RecipeError, match="8 of 8 rows"):
        run_recipe(path, out=tmp_path / "run")
    [warning] = plan_run(path, ["evaluate.primary=exact_match"]).warnings
    assert "rougeL" in warning
