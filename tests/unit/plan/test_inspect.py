"""`tunesmith show` shows the tokens that training reads, and the prompts and answers of evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import make_tokenizer
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import DamagedFile, DataError, RecipeError
from tunesmith.core.files import write_text
from tunesmith.core.rundir import RunDir
from tunesmith.data import process_rows
from tunesmith.plan.inspect import inspect_rows
from tunesmith.recipe.load import load_recipe
from tunesmith.report.tokens import render_text


@pytest.fixture
def recipe(tmp_path: Path, tokenizer_folder: Path) -> Path:
    return write_recipe(tmp_path, tokenizer_folder)


@pytest.fixture
def run(recipe: Path) -> RunDir:
    """A run with only `prepare` finished."""
    from tunesmith.pipeline.runner import run_recipe

    return run_recipe(recipe, out=recipe.parent / "run", until="prepare")


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


# --- which rows ---


def test_rows_of_a_recipe_are_the_first_of_the_split(recipe: Path) -> None:
    found = inspect_rows(recipe, rows=4, split="train")
    assert len(found) == 4
    assert {one["split"] for one in found} == {"train"}
    assert [one["row"] for one in found] == sorted(one["row"] for one in found)
    assert [one["where"] for one in found] == [f"rows.jsonl:{one['row']}" for one in found]


def test_only_the_answer_and_its_stop_token_are_trained(recipe: Path) -> None:
    [found] = inspect_rows(recipe, rows=1, split="test")
    row = json.loads((recipe.parent / "rows.jsonl").read_text(encoding="utf-8").splitlines()[found["row"] - 1])
    trained = "".join(one["text"] for one in found["tokens"] if one["trained"])
    assert trained == row["answer"] + "<|im_end|>"
    prompt = "".join(one["text"] for one in found["tokens"][: found["prompt_tokens"]])
    assert prompt == f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
    assert [one["text"] for one in found["tokens"] if one["special"]] == ["<|im_start|>", "<|im_end|>"] * 2


def test_overrides_apply_to_the_recipe(recipe: Path) -> None:
    [found] = inspect_rows(recipe, ["data.system='Be brief.'"], rows=1, split="train")
    assert "".join(one["text"] for one in found["tokens"]).startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_sources_are_read_only_as_far_as_needed(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    whole = process_rows.read_rows

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal read
        for row in whole(*args, **kwargs):
            read += 1
            yield row

    monkeypatch.setattr(process_rows, "read_rows", counted)
    last = inspect_rows(recipe, rows=2, split="train")[-1]
    assert read == last["row"] < 60


def test_truncated_rows_have_the_status_cut(recipe: Path) -> None:
    limits = ["data.max_tokens_per_example=36", "data.too_long=truncate", "data.max_dropped_fraction=0.9"]
    [found] = inspect_rows(recipe, limits, rows=1, split="train")
    assert (found["status"], len(found["tokens"])) == ("cut", 36)


def test_a_split_with_fewer_rows_is_shown_completely(recipe: Path) -> None:
    assert 0 < len(inspect_rows(recipe, rows=10_000, split="valid")) < 60


@pytest.mark.parametrize(("split", "hint"), [("tset", "did you mean `test`?"), ("x", "known are train, valid, test")])
def test_the_hint_for_an_unknown_split(recipe: Path, split: str, hint: str) -> None:
    with raises(RecipeError, "usage", split) as caught:
        inspect_rows(recipe, rows=1, split=split)
    assert caught.value.hint == hint


def test_rows_that_cannot_be_shown(recipe: Path) -> None:
    with raises(RecipeError, "usage", 0):
        inspect_rows(recipe, rows=0)
    with raises(DataError, "no-rows", "valid"):
        inspect_rows(recipe, ["data.split.valid=0"], split="valid")
    with pytest.raises(DataError) as caught:
        inspect_rows(recipe, ["data.prompt='{nope}'"])
    assert "`nope`" in str(caught.value)
    with pytest.raises(RecipeError) as refused:
        inspect_rows(recipe.parent)
    assert str(recipe.parent) in str(refused.value)


# --- a run ---


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_prepared_run_shows_the_rows_of_its_recipe(run: RunDir, recipe: Path, split: str) -> None:
    before = inspect_rows(recipe, rows=3, split=split)
    (recipe.parent / "rows.jsonl").unlink()  # only the run can be read
    assert inspect_rows(run.path, rows=3, split=split) == before


def test_a_run_without_prepared_rows_reads_its_sources(run: RunDir, recipe: Path) -> None:
    before = inspect_rows(run.path, rows=2)
    (run.stage("prepare") / "manifest.json").unlink()
    assert inspect_rows(run.path, rows=2) == before
    assert inspect_rows(run.path, ["data.split.test=0.5"], rows=2) != []


def test_overrides_of_a_prepared_run_are_refused(run: RunDir) -> None:
    with raises(RecipeError, "no-effect", where=str(run)):
        inspect_rows(run.path, ["data.split.test=0.5"])


def test_prepared_rows_are_not_decoded_with_another_tokenizer(run: RunDir, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_tokenizer(markup=("<other>",)).save_pretrained(other)
    (other / "config.json").write_text("{}", encoding="utf-8")
    base = load_recipe(run.resolved_recipe).model.base
    rewrite(run.resolved_recipe, lambda text: text.replace(base, str(other)))
    with raises(RecipeError, "inputs-changed", other):
        inspect_rows(run.path)


def test_damaged_files_of_prepare_are_refused(run: RunDir) -> None:
    rewrite(run.examples("train"), lambda text: text.split("\n", 1)[1])
    with raises(DamagedFile, "damaged-file", where="prepare"):
        inspect_rows(run.path)
    run.tokens("train").write_bytes(b"not safetensors")
    with raises(DamagedFile, "damaged-file", where=str(run.tokens("train"))):
        inspect_rows(run.path)


# --- prompts and answers ---


def texts(found: list[dict[str, Any]]) -> list[str]:
    return ["".join(one["text"] for one in sample["tokens"]) for sample in found]


def test_prompts_have_the_tokens_that_evaluation_reads(recipe: Path) -> None:
    found, learned = inspect_rows(recipe, rows=2, stage="evaluate"), inspect_rows(recipe, rows=2, split="test")
    assert [one["part"] for one in found] == ["prompt", "prompt"]
    for prompt, row in zip(found, learned, strict=True):
        assert prompt["tokens"] == row["tokens"][: row["prompt_tokens"]]
    with raises(RecipeError, "usage", "valid"):
        inspect_rows(recipe, split="valid", stage="evaluate")


def test_answers_have_the_tokens_that_were_generated(run: RunDir) -> None:
    rows = inspect_rows(run.path, rows=3, stage="evaluate")
    ids = [one["id"] for one in rows[0]["tokens"]][3:7]
    for name, line in (("base", {"stopped": False, "error": None}), ("tuned", {"stopped": True, "error": None})):
        line |= {"id": rows[1]["id"], "ids": ids[:2] if name == "base" else ids}
        write_text(run.evaluation(name) / "generations.jsonl", json.dumps(line) + "\n" + '{"id": "half')
    found = inspect_rows(run.path, rows=3, stage="evaluate")
    assert [one["part"] for one in found] == ["prompt", "base", "tuned"]
    assert found[0] == rows[1]
    assert [[one["id"] for one in sample["tokens"]] for sample in found[1:]] == [ids[:2], ids]
    assert (run.evaluation("base") / "generations.jsonl").read_text().endswith("half")  # the file is unchanged
    shown = render_text(found, colour=False)
    assert "learned" not in shown
    assert f"({found[0]['where']}), answer of base  2 tokens, cut off at the token limit" in shown
    assert f"({found[0]['where']}), answer of tuned  4 tokens\n" in shown
    rewrite(run.evaluation("base") / "generations.jsonl", lambda text: '{"id": \n' + text)
    with raises(DamagedFile, "damaged-file", where="generations.jsonl:1"):
        inspect_rows(run.path, stage="evaluate")


def test_a_row_that_is_used_twice_is_shown_once(recipe: Path) -> None:
    from tunesmith.pipeline.runner import run_recipe

    (recipe.parent / "more.jsonl").write_text((recipe.parent / "rows.jsonl").read_text().replace("Say", "Tell"))
    both = "data.source=[{file: rows.jsonl, weight: 2}, {file: more.jsonl}]"
    prepared = run_recipe(recipe, [both], out=recipe.parent / "run", until="prepare")
    rows = [one["row"] for one in inspect_rows(prepared.path, rows=1000)]
    assert rows == [one["row"] for one in inspect_rows(recipe, [both], rows=1000)]
    assert len(rows) == len(set(rows))


# --- documents in blocks ---

BLOCKS = ("data={source: {file: rows.jsonl}, task: text, text: '{question} {answer}', max_tokens_per_example: 8, "
          "too_long: split, sample_prefix_tokens: 3, split: {valid: 0.15, test: 0.2}}")  # fmt: skip


def test_blocks_of_a_document_are_numbered(recipe: Path) -> None:
    from tunesmith.pipeline.runner import run_recipe

    found = inspect_rows(recipe, [BLOCKS], rows=4)
    assert [one["block"] for one in found[:2]] == [[1, found[0]["block"][1]], [2, found[0]["block"][1]]]
    assert found[0]["row"] == found[1]["row"]
    assert found[0]["tokens"][-1]["id"] == found[1]["tokens"][0]["id"]
    assert [one["trained"] for one in found[1]["tokens"]] == [False] + [True] * (len(found[1]["tokens"]) - 1)
    assert f"({found[1]['where']}), block 2 of {found[1]['block'][1]}  8 tokens, 7 trained, prompt 3" in render_text(
        found, colour=False
    )
    prepared = run_recipe(recipe, [BLOCKS], out=recipe.parent / "run", until="prepare")
    assert inspect_rows(prepared.path, rows=4) == found
    asked = inspect_rows(prepared.path, rows=5, stage="evaluate")
    for prompt, row in zip(asked, inspect_rows(recipe, [BLOCKS], rows=5, split="test"), strict=True):
        assert prompt["block"] == row["block"]
        assert prompt["tokens"] == [{**one, "trained": False} for one in row["tokens"][: row["prompt_tokens"]]]
