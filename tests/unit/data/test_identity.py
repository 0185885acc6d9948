"""Ids follow from the source columns: rewording a prompt changes neither the ids nor the splits."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from tests.support.errors import raises
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.errors import DataError
from tunesmith.core.files import write_json
from tunesmith.core.jsonl import read_jsonl, write_jsonl
from tunesmith.core.records import Turn
from tunesmith.core.rundir import RunDir
from tunesmith.data.dataset import build_dataset
from tunesmith.data.identity import block_id, group_id, row_id
from tunesmith.data.prepare import prepare
from tunesmith.data.trained_rows import TRAINED_ROWS, trained_rows, write_trained_rows
from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.inference.prompts import read_selected_rows
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Data
from tunesmith.scoring.row_scores import VerdictSettings
from tunesmith.scoring.standalone import compare_files
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter

Prepare = Callable[..., RunDir]
ROWS = [{"id": n, "question": f"What is {n}?", "hint": f"near {n}", "answer": f"It is {n}."} for n in range(60)]


@pytest.fixture
def prepared(tmp_path: Path, tokenizer_folder: Path) -> Prepare:
    """Return a function that prepares rows with settings of `data` in the run of a name."""

    def prepare_(name: str, rows: list[dict[str, Any]] | None = None, seed: int = 0, **data: Any) -> RunDir:
        section = {
            "source": {"file": "own.jsonl"}, "task": "completion", "prompt": "{question}", "response": "{answer}",
            "split": {"valid": 0.15, "test": 0.3}, **data,
        }  # fmt: skip
        section = {key: value for key, value in section.items() if value is not None}
        path = write_recipe(tmp_path, tokenizer_folder, data=section, seed=seed)
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
        run = RunDir(tmp_path / name)
        write_json(run.environment, {"recipe_folder": ".."})
        prepare(load_recipe(path), run)
        return run

    return prepare_


def placements(run: RunDir) -> list[tuple[Any, ...]]:
    return [(line["row"], line["id"], line["split"], line["times"]) for line in read_jsonl(run.ledger)]


CHAT = {"task": "chat"}
TEXT = {"task": "text", "prompt": None, "response": None}
REWORDED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "{question}"}, {"prompt": "Answer briefly.\n\n{question}\n\nAnswer:"}),
    ({"prompt": "{question} ({hint})"}, {"prompt": "Given {hint}: {question} {question}"}),
    ({"response": "{answer}"}, {"response": " {answer}!"}),
    ({**CHAT, "system": "Be brief."}, {**CHAT, "system": "You are a careful assistant."}),
    ({**CHAT, "prompt": "{question}\n{hint}"}, {**CHAT, "system": "Use {hint}.", "prompt": "{question}"}),
    ({**TEXT, "text": "{question} {answer}"}, {**TEXT, "text": "Q: {question}\nA: {answer}"}),
    ({"split": {"by": "hint", "test": 0.3}}, {"split": {"by": "hint", "test": 0.3}, "prompt": "Q: {question}"}),
    ({"train_rows": 20}, {"train_rows": 20, "prompt": "Now: {question}"}),
]


@pytest.mark.parametrize(("original", "reworded"), REWORDED)
def test_reworded_template_keeps_ids_splits_and_chosen_rows(
    prepared: Prepare, original: dict[str, Any], reworded: dict[str, Any]
) -> None:
    first, second = prepared("one", **original), prepared("other", **reworded)
    assert placements(first) == placements(second)
    assert {line["split"] for line in read_jsonl(first.ledger)} >= {"train", "test"}
    chosen = [[example.id for example in read_selected_rows(run, "test", 5, 0)[0]] for run in (first, second)]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 5


def test_reworded_system_turn_keeps_ids_and_splits(prepared: Prepare) -> None:
    rows = [
        {"m": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
        for row in ROWS
    ]
    shape = {"task": "chat", "messages": "m", "prompt": None, "response": None}
    runs = [prepared(str(n), rows, system=system, **shape) for n, system in enumerate((None, "Be brief.", "Be long."))]
    assert placements(runs[0]) == placements(runs[1]) == placements(runs[2])


def test_two_prompts_are_compared_on_the_same_rows(prepared: Prepare, tmp_path: Path) -> None:
    files = []
    for name, prompt in (("a", "{question}"), ("b", "Answer: {question}")):
        files.append(tmp_path / f"{name}.jsonl")
        examples, _ = read_selected_rows(prepared(name, prompt=prompt), "test", 8, 0)
        write_jsonl(files[-1], [{"id": example.id, "exact_match": float(name == "b")} for example in examples])
    result = compare_files(*files, "exact_match", VerdictSettings(0.0, 0.95, 0))
    assert (result.comparison.rows, result.comparison.gain) == (8, 1.0)


def test_blocks_of_a_reworded_document_keep_their_ids(prepared: Prepare) -> None:
    rows = [{"title": f"T{n}", "story": f"Once {n} went. " * 30} for n in range(30)]
    shape = {**TEXT, "max_tokens_per_example": 64, "too_long": "split"}
    first, second = (prepared(t[:3], rows, text=t, **shape) for t in ("{title}{story}", "{title}: {story}"))
    assert placements(first) == placements(second)
    ids = [line["id"] for line in read_jsonl(first.ledger)]
    assert len(set(ids)) == len(ids) > 60


def section(tmp_path: Path, tokenizer_folder: Path, **data: Any) -> Any:
    whole = {"source": {"file": "x.jsonl"}, "task": "completion", "prompt": "{q}", "response": "{a}", **data}
    return load_recipe(write_recipe(tmp_path, tokenizer_folder, data=whole)).data


def test_row_id_follows_from_the_used_columns(tmp_path: Path, tokenizer_folder: Path) -> None:
    data = section(tmp_path, tokenizer_folder)
    row = {"q": "one", "a": "two", "line": 1}
    assert row_id(data, row, ()) == row_id(data, {**row, "line": 2}, ())
    assert row_id(data, row, ()) == row_id(data, {**row, "q": "one"}, ())
    assert len({row_id(data, {**row, **other}, ()) for other in ({}, {"q": "One"}, {"a": "one"})}) == 3
    # Swapping the values of two columns gives another row.
    assert row_id(data, {"q": "x", "a": "y"}, ()) != row_id(data, {"q": "y", "a": "x"}, ())
    assert len({block_id("a", 1, 8), block_id("a", 2, 8), block_id("b", 1, 8), block_id("a", 1, 16)}) == 4


def test_rows_with_the_same_prompt_share_a_group(tmp_path: Path, tokenizer_folder: Path) -> None:
    turns = Turn("prompt", "", False), Turn("response", "", True)
    data = section(tmp_path, tokenizer_folder, prompt="{q} of {c}")
    row = {"q": "How many", "c": "x", "a": "1"}
    assert group_id(data, row, turns) == group_id(data, {"q": " HOW  many", "c": "X", "a": "2"}, turns)
    assert group_id(data, row, turns) != group_id(data, {**row, "c": "y"}, turns)
    assert group_id(data, row, turns) != group_id(data, {"q": "x", "c": "How many", "a": "1"}, turns)


def test_ids_and_groups_follow_from_values_inside_columns(tmp_path: Path, tokenizer_folder: Path) -> None:
    data = section(tmp_path, tokenizer_folder, prompt="{t.en}", response="{t.de}")
    turns = Turn("prompt", "", False), Turn("response", "", True)
    rows = [{"t": {"en": en, "de": de, "fr": fr}} for en, de, fr in ("xyz", "xyy", "xzz", "yyz")]
    assert len({row_id(data, row, turns) for row in rows}) == 3
    assert [group_id(data, row, turns) == group_id(data, rows[0], turns) for row in rows] == [True, True, True, False]
    assert row_id(data, {"t": json.dumps(rows[0]["t"])}, turns) == row_id(data, rows[0], turns)


# --- rows that the base was trained on ---


@pytest.fixture
def base(prepared: Prepare, tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A base that was trained on rows split by seed 0."""
    run = prepared("before")
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "base"))
    shutil.copy(run.stage("prepare") / TRAINED_ROWS, folder)
    data = load_recipe(tmp_path / "recipe.yaml").data
    write_json(folder / CARD, {"data": data.model_dump(mode="json", exclude={"source", "split"})})
    return folder


def planned(tmp_path: Path, base: Path, *overrides: str) -> dict[str, Any]:
    recipe = load_recipe(tmp_path / "recipe.yaml", overrides)
    task = task_for(recipe.data, TokenizerAdapter.load(base))
    return build_dataset(recipe, task, folder=tmp_path, model=ModelFolder("x", base)).facts()


def test_held_out_rows_that_the_base_was_trained_on_give_a_warning(
    base: Path, prepared: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared("reworded", prompt="Answer: {question}")
    assert planned(tmp_path, base)["trained_before"] == {"valid": 0, "test": 0}
    assert "trained on" not in capsys.readouterr().err
    other = planned(tmp_path, base, "seed=1")["trained_before"]
    before, after = ({line["id"]: line["split"] for line in read_jsonl(prepared(name, **more).ledger)}
                     for name, more in (("one", {}), ("two", {"seed": 1})))  # fmt: skip
    expected = [name for id_, name in after.items() if before[id_] == "train" and name in ("valid", "test")]
    assert {name: other[name] for name in ("valid", "test")} == Counter(expected)
    assert min(Counter(expected).values()) > 0
    assert f"{other['test']} test rows" in capsys.readouterr().err
    with raises(DataError, "leakage", where="data.leakage"):
        planned(tmp_path, base, "seed=1", "data.leakage=error")


def test_base_trained_on_other_columns_gives_a_warning(
    base: Path, prepared: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared("wider", prompt="{question} {hint}")
    planned(tmp_path, base)
    assert "other columns" in capsys.readouterr().err


def test_trained_rows_include_those_of_the_base(base: Path, tmp_path: Path) -> None:
    first = trained_rows(ModelFolder("x", base))
    assert len(first) > 20
    (tmp_path / "adapter").mkdir()
    write_trained_rows(tmp_path / "adapter" / TRAINED_ROWS, ["00" * 8, "ff" * 8, "00" * 8], ModelFolder("x", base))
    assert trained_rows(ModelFolder("y", tmp_path / "adapter")) == first | {b"\0" * 8, b"\xff" * 8}
    assert trained_rows(ModelFolder("z", tmp_path, base=ModelFolder("x", base))) == first
    assert trained_rows(None) == frozenset()


def test_tools_and_calls_belong_to_the_id_of_a_row() -> None:
    source = {"source": {"file": "rows.jsonl"}, "task": "chat"}
    chat = TypeAdapter(Data).validate_python({**source, "messages": "m", "tools": "t"})
    pair = TypeAdapter(Data).validate_python({**source, "prompt": "{q}", "response": "{a}", "tools": "t"})
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    asked, answer = Turn("user", "one", trained=False), Turn("assistant", "two", trained=True)
    tools = [Turn("tools", text, trained=False) for text in ("[1]", "[2]")]
    for data, row in ((chat, {}), (pair, {"q": "one", "a": "two"})):
        assert len({row_id(data, row, [*first, asked, answer]) for first in ([], tools[:1], tools[1:])}) == 3
        assert len({group_id(data, row, [*first, asked, answer]) for first in ([], tools[:1], tools[1:])}) == 3
    calls = [Turn("assistant", "", trained=True, keys={"tool_calls": n * [call]}) for n in (1, 2)]
    assert len({row_id(chat, {}, [asked, turn]) for turn in (answer, *calls)}) == 3
