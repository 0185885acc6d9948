"""`prepare` writes a complete ledger, the same bytes every time, and either all files or none."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import DataError, DoesNotFit
from tunesmith.core.files import check_folder, read_json, write_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.records import Example
from tunesmith.core.rundir import RunDir
from tunesmith.data import prepare as stage
from tunesmith.data.prepare import inputs, prepare
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import cached_encoder, task_for, tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter

Row = dict[str, Any]


class Prepared:
    """A recipe and its run."""

    def __init__(self, folder: Path, recipe: Recipe, run: RunDir) -> None:
        self.folder, self.recipe, self.run = folder, recipe, run

    def go(self) -> dict[str, Any]:
        return prepare(self.recipe, self.run)

    def ledger(self) -> list[Row]:
        return list(read_jsonl(self.run.ledger))

    def examples(self, split: str) -> list[Example]:
        return [Example.from_json(line) for line in read_jsonl(self.run.examples(split))]


@pytest.fixture
def make(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., Prepared]:
    """Return a function that writes a recipe, with the given rows or those of the tiny recipe."""

    def make_(rows: list[Row] | None = None, *overrides: str, name: str = "run") -> Prepared:
        path = write_recipe(tmp_path, tokenizer_folder)
        if rows is not None:
            (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = RunDir(tmp_path / name)
        write_json(run.environment, {"recipe_folder": ".."})
        return Prepared(tmp_path, load_recipe(path, overrides), run)

    return make_


def test_ledger_accounts_for_every_row(make: Callable[..., Prepared]) -> None:
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}.", "tree": i} for i in range(50)]
    rows[7]["answer"] = ""
    rows[9]["answer"] = "word " * 60
    made = make(rows, "data.max_dropped_fraction=0.5", "data.max_tokens_per_example=80", "data.too_long=truncate",
                "data.train_rows=20")  # fmt: skip
    manifest = made.go()
    assert check_folder(made.run.stage("prepare")) == manifest
    ledger = made.ledger()
    assert [entry["row"] for entry in ledger] == list(range(1, 51))
    status = Counter(entry["status"] for entry in ledger)
    counts = manifest["counts"]
    assert counts["train"] == 20
    assert counts["train"] + counts["valid"] + counts["test"] == status["kept"] + status["cut"]
    assert (counts["dropped"], counts["cut"], counts["unused"]) == (1, status["cut"], status["unused"])
    assert status["dropped"] == 1
    assert manifest["dropped"] == {"cell `answer` is empty": 1}
    assert sum(manifest["cut"].values()) == status["cut"]
    for split in ("train", "valid", "test"):
        entries = [e for e in ledger if e["split"] == split and e["status"] in ("kept", "cut")]
        examples, tokens = made.examples(split), TokenDataset(made.run.tokens(split))
        assert [e["id"] for e in entries] == [example.id for example in examples]
        assert [e["row"] for e in entries] == [example.row for example in examples]
        assert tokens.lengths.tolist() == [e["tokens"] for e in entries]
        assert tokens.trained_tokens(range(len(tokens))) == sum(e["trained"] for e in entries)
        assert manifest["trained_tokens"][split] == sum(e["trained"] for e in entries)
        assert manifest["tokens"][split] == sum(e["tokens"] for e in entries)


def test_ledger_accounts_for_every_block_of_a_document(make: Callable[..., Prepared]) -> None:
    rows = [{"question": f"What is {i}?", "answer": "It is " + "a number and " * (i % 10) + "no more."}
            for i in range(50)]  # fmt: skip
    made = make(rows, "data={source: {file: rows.jsonl}, task: text, text: '{question} {answer}', too_long: split, "
                "max_tokens_per_example: 40, max_dropped_fraction: 0, split: {valid: 0.15, test: 0.2}}")  # fmt: skip
    manifest = made.go()
    ledger = made.ledger()
    assert list(dict.fromkeys(entry["row"] for entry in ledger)) == list(range(1, 51))
    blocks = [entry["block"] for entry in ledger if entry["block"]]
    assert manifest["blocks"] == {"documents": sum(of == 1 for of, _ in blocks), "blocks": len(blocks)}
    assert manifest["blocks"]["documents"] > 10
    assert manifest["dropped"] == manifest["cut"] == {}
    for split in ("train", "valid", "test"):
        entries = [entry for entry in ledger if entry["split"] == split]
        examples, tokens = made.examples(split), TokenDataset(made.run.tokens(split))
        assert [entry["id"] for entry in entries] == [example.id for example in examples]
        assert manifest["counts"][split] == len(entries) == len(tokens)
        assert tokens.max_length <= 40
        for index, (entry, example) in enumerate(zip(entries, examples, strict=True)):
            ids = example.turns[0].ids
            assert bool(ids) == bool(entry["block"])
            assert ids in ((), tokens.example(index, example.id).input_ids)
    samples = read_json(made.run.stage("prepare") / "samples.json")
    first = [entry for entry in ledger if entry["split"] == "train"][:3]
    assert [(s["row"], s["block"]) for s in samples[:3]] == [(entry["row"], entry["block"]) for entry in first]


def test_tokens_on_disk_are_those_of_the_examples(make: Callable[..., Prepared], tokenizer_folder: Path) -> None:
    made = make()
    made.go()
    task = task_for(made.recipe.data, TokenizerAdapter.load(tokenizer_folder))
    for split in ("train", "valid", "test"):
        tokens = TokenDataset(made.run.tokens(split))
        for index, example in enumerate(made.examples(split)):
            expected = task.render(example.turns, example.id)
            batch = tokens.batch([index], 0)
            size = len(expected.input_ids)
            assert batch.input_ids[0, :size].tolist() == list(expected.input_ids)
            assert batch.loss_mask[0, :size].tolist() == list(expected.trained)
            assert expected.input_ids[: len(task.encode_prompt(example.turns))] == tuple(
                task.encode_prompt(example.turns)
            )


def test_files_are_the_same_bytes_every_time(make: Callable[..., Prepared]) -> None:
    manifests = []
    for name in ("one", "two"):
        made = make(name=name)
        manifests.append(made.go())
    assert manifests[0]["files"] == manifests[1]["files"]
    assert manifests[0]["inputs"] == manifests[1]["inputs"]
    # The examples and tokens of each split, the ledger, the samples, and the ids of the training rows.
    assert len(manifests[0]["files"]) == 9


def test_no_prompt_is_in_two_splits(make: Callable[..., Prepared]) -> None:
    rows = [{"question": f"What is {i % 25}?", "answer": f"It is {i}."} for i in range(100)]
    made = make(rows)
    made.go()
    prompts = {split: {e.turns[0].text for e in made.examples(split)} for split in ("train", "valid", "test")}
    assert all(prompts.values())
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["valid"]
    assert not prompts["valid"] & prompts["test"]


@pytest.mark.parametrize("limit", [1, 10, 30, 1000])
def test_train_rows_counts_equal_rows_separately(make: Callable[..., Prepared], limit: int) -> None:
    rows = [{"question": f"What is {i % 20}?", "answer": "It is."} for i in range(60)]
    made = make(rows, f"data.train_rows={limit}")
    counts = made.go()["counts"]
    everything = counts["train"] + counts["unused"]
    assert counts["train"] == min(limit, everything)
    assert {entry["split"] for entry in made.ledger() if entry["status"] == "unused"} <= {"train"}
    assert all(entry["reason"] == "beyond train_rows" for entry in made.ledger() if entry["status"] == "unused")


def test_train_rows_changes_train_only_and_larger_values_add_rows(make: Callable[..., Prepared]) -> None:
    chosen = {}
    for limit in (5, 10, 20):
        made = make(None, f"data.train_rows={limit}", name=f"run-{limit}")
        made.go()
        chosen[limit] = {split: {e.id for e in made.examples(split)} for split in ("train", "valid", "test")}
    assert chosen[5]["train"] < chosen[10]["train"] < chosen[20]["train"]
    assert chosen[5]["test"] == chosen[20]["test"]
    assert chosen[5]["valid"] == chosen[20]["valid"]


def test_empty_split_error_has_the_counts(make: Callable[..., Prepared]) -> None:
    rows = [{"question": "always the same", "answer": str(i)} for i in range(30)]
    with raises(DataError, "empty-split", "train", "valid", "test"):
        make(rows).go()


def test_samples_are_the_first_rows_of_each_split(make: Callable[..., Prepared]) -> None:
    made = make()
    made.go()
    samples = read_json(made.run.stage("prepare") / "samples.json")
    assert [sample["split"] for sample in samples] == ["train"] * 3 + ["valid"] * 3 + ["test"] * 3
    first = made.examples("train")[0]
    assert (samples[0]["id"], samples[0]["row"]) == (first.id, first.row)
    trained = "".join(token["text"] for token in samples[0]["tokens"] if token["trained"])
    assert trained.startswith(first.turns[-1].text)


def test_inputs_change_with_data_and_seed_only(make: Callable[..., Prepared]) -> None:
    made = make()
    before = inputs(made.recipe, made.run)
    assert inputs(made.recipe, made.run) == before
    assert json.loads(json.dumps(before)) == before
    assert inputs(make(None, "train.learning_rate=0.5", "evaluate.rows=3").recipe, made.run) == before
    for override in ("seed=1", "data.train_rows=3", "data.split.test=0.3"):
        assert inputs(make(None, override).recipe, made.run) != before
    (made.folder / "rows.jsonl").write_text((made.folder / "rows.jsonl").read_text() + "\n")
    assert inputs(made.recipe, made.run) != before


@pytest.mark.parametrize("function", ["write_chunks", "write_tokens", "write_json"])
def test_crash_leaves_no_prepared_stage(
    make: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    made = make()
    calls: list[int] = []
    real = getattr(stage, function)

    def crash(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if function == "write_json" else 2):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(stage, function, crash)
    with pytest.raises(KeyboardInterrupt):
        made.go()
    assert made.run.manifest("prepare") is None
    assert [path.name for path in made.run.path.iterdir()] == ["environment.json"]
    monkeypatch.undo()
    made.go()
    check_folder(made.run.stage("prepare"))


def test_full_disk_is_a_does_not_fit_error(make: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()

    def full(path: Path, examples: Any) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(stage, "write_tokens", full)
    with pytest.raises(DoesNotFit):
        made.go()
    assert made.run.manifest("prepare") is None


@pytest.mark.parametrize("encoder", ["whole texts", "transformers"])
def test_slow_encoders_give_the_same_bytes(
    make: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    made = make(name="one").go()
    if encoder == "whole texts":
        monkeypatch.setattr(cached_encoder, "can_encode_by_words", lambda backend: False)
    else:
        monkeypatch.setattr(tokenizer, "load_plain_tokenizer", lambda folder: None)
    assert make(name="other").go()["files"] == made["files"]
