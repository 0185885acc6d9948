"""Each row gets a split, a group and a ledger entry; it is kept, cut, dropped or filtered with a reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.unit.data.conftest import recipe

from tunesmith.core import interrupt
from tunesmith.core.errors import DataError, Interrupted
from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.data.process_rows import ProcessedRow, process_rows
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.tokenizer import TokenizerAdapter

Row = dict[str, Any]
Process = Callable[..., list[ProcessedRow]]


def rows(count: int = 40) -> list[Row]:
    return [{"question": f"What is {i}?", "answer": f"It is {i}.", "tree": i // 4} for i in range(count)]


@pytest.fixture
def process(tmp_path: Path, tokenizer_folder: Path) -> Process:
    """Return a function that writes rows and processes them."""

    def process_(given_rows: list[Row] | None = None, *, by: Task | None = None, **settings: Any) -> list[ProcessedRow]:
        loaded = recipe(**settings)
        lines = (json.dumps(row) + "\n" for row in (rows() if given_rows is None else given_rows))
        (tmp_path / "rows.jsonl").write_text("".join(lines))
        return list(
            process_rows(loaded, by or task_for(loaded.data, TokenizerAdapter.load(tokenizer_folder)), folder=tmp_path)
        )

    return process_


def splits(processed: list[ProcessedRow]) -> dict[str, str | None]:
    return {row.example.turns[0].text: row.entry.split for row in processed if row.example}


def test_every_row_has_a_ledger_entry(process: Process) -> None:
    processed = process()
    assert [row.entry.row for row in processed] == list(range(1, 41))
    assert [row.entry.where for row in processed] == [f"rows.jsonl:{i}" for i in range(1, 41)]
    assert {row.entry.split for row in processed} == {"train", "valid", "test"}
    for row in processed:
        assert row.entry.status == "kept"
        assert row.example is not None
        assert row.tokens is not None
        assert row.entry.id == row.example.id == row.tokens.example_id
        assert row.entry.tokens == len(row.tokens.input_ids) == len(row.tokens.trained)
        assert row.entry.trained == sum(row.tokens.trained) > 0


def test_valid_and_test_rows_keep_their_references(process: Process) -> None:
    given = [{**row, "r1": f"A {i}.", "r2": [f"B {i}.", ""] if i % 2 else None} for i, row in enumerate(rows())]
    found = process(given, references=["r1", "r2"])
    for row in found:
        number = row.entry.row - 1
        expected = (f"A {number}.", f"B {number}.") if number % 2 else (f"A {number}.",)
        assert row.example is not None
        assert row.example.references == (() if row.entry.split == "train" else expected)
    without = process()
    assert [row.entry.id for row in found] == [row.entry.id for row in without], "ids stay comparable"


def test_column_of_references_that_no_source_has_is_refused(process: Process) -> None:
    with raises(DataError, "missing-column", "r3"):
        process(references=["answer", "r3"])


# --- splits and groups ---


def test_split_of_a_row_does_not_depend_on_other_rows(process: Process) -> None:
    expected = splits(process())
    backwards = splits(process(rows()[::-1]))
    assert backwards == expected
    more = splits(process(rows(80)))
    assert {text: more[text] for text in expected} == expected
    assert splits(process(seed=1)) != expected


def test_rows_with_equal_split_by_values_stay_together(process: Process) -> None:
    processed = process(split={"valid": 0.2, "test": 0.2, "by": "tree"})
    split_of: dict[int, set[str | None]] = {}
    groups: dict[int, set[str]] = {}
    for number, row in enumerate(processed):
        assert row.example is not None
        split_of.setdefault(number // 4, set()).add(row.entry.split)
        groups.setdefault(number // 4, set()).add(row.example.group)
    assert all(len(names) == 1 for names in (*split_of.values(), *groups.values()))
    assert set().union(*split_of.values()) == {"train", "valid", "test"}
    assert len(set().union(*groups.values())) == 10


def test_group_is_named_by_the_split_by_column(process: Process) -> None:
    long = "x" * 200
    given_rows = [
        {**row, "kind": long if i % 2 else "count", "s": ("train", "test")[i % 3 > 1]} for i, row in enumerate(rows())
    ]
    processed = process(given_rows, split={"column": "s", "by": "kind"})
    names = {row.example.group for row in processed if row.example is not None}
    assert "count" in names
    [other] = names - {"count"}
    assert other.startswith("xxx")
    assert len(other) < 110
    for i, row in enumerate(processed):
        assert row.entry.split == ("train", "test")[i % 3 > 1]


def test_rows_with_the_same_prompt_stay_together(process: Process) -> None:
    given_rows = [
        {"question": text, "answer": str(i)} for i in range(20) for text in (f"Ask {i}?", f"  ASK\u200b {i}?\n")
    ]
    processed = process(given_rows)
    for first, second in zip(processed[::2], processed[1::2], strict=True):
        assert first.example is not None
        assert second.example is not None
        assert first.example.group == second.example.group
        assert first.entry.split == second.entry.split
        assert first.entry.id != second.entry.id


def test_split_column_names_the_split(process: Process) -> None:
    words = ["training", "valid", "test", "Validation", " DEV ", "TEST\n"]
    given_rows = [{**row, "fold": words[i % 6]} for i, row in enumerate(rows(12))]
    processed = process(given_rows, split={"column": "fold"})
    assert [row.entry.split for row in processed] == ["train", "valid", "test", "valid", "valid", "test"] * 2
    given_rows[7]["fold"] = "holdout"
    with raises(DataError, "unknown-split", "holdout", where="rows.jsonl:8"):
        process(given_rows, split={"column": "fold"})
    given_rows[7]["fold"] = None
    assert process(given_rows, split={"column": "fold"})[7].entry.reason == "cell `fold` is empty"


def test_missing_column_is_refused_at_the_first_row(process: Process) -> None:
    for settings in ({"response": "{anser}"}, {"split": {"by": "anser"}}, {"split": {"column": "anser"}}):
        with raises(DataError, "missing-column", "`anser`", "`answer`", where="rows.jsonl:1"):
            process(**settings)


# --- missing and empty cells ---


def hint_of(process: Process, *arguments: Any, **settings: Any) -> str:
    with raises(DataError, "too-many-dropped") as caught:
        process(*arguments, **{"max_dropped_fraction": 0, **settings})
    return str(caught.value.hint)


def test_column_missing_from_some_rows_is_empty_there(process: Process) -> None:
    given_rows = rows(8)
    del given_rows[2]["question"]
    processed = process(given_rows)
    assert (processed[2].entry.status, processed[2].entry.reason) == ("dropped", "cell `question` is empty")
    processed = process(given_rows, filters=[{"column": "question", "matches": "What"}])
    assert (processed[2].entry.status, processed[2].entry.reason) == ("filtered", "`question` does not match 'What'")
    assert "`{question?}`" in hint_of(process, given_rows)
    processed = process(given_rows, prompt="Tree {tree}:\n{question?}")
    assert processed[2].example is not None
    assert processed[2].example.turns[0].text == "Tree 0:"
    # A response cannot be optional, so `?` is not suggested for it.
    given_rows[2] = {**rows(1)[0], "answer": ""}
    assert "{answer?}" not in hint_of(process, given_rows)


def test_empty_and_missing_optional_cells_give_the_same_id(process: Process) -> None:
    given_rows = [
        {"question": "x", "answer": "y", **more} for more in ({}, {"note": None}, {"note": ""}, {"note": "n"})
    ]
    ids = [row.entry.id for row in process(given_rows, prompt="{question} {note?}")]
    assert len(set(ids[:3])) == 1
    assert ids[3] not in ids[:3]


def test_hint_for_long_rows_gives_their_length(process: Process) -> None:
    given_rows = rows(6)
    for row in given_rows[::2]:
        row["answer"] = "word " * 100
    long = max(row.entry.tokens for row in process(given_rows))
    hint = hint_of(process, given_rows, max_tokens_per_example=32)
    assert "data.max_tokens_per_example" in hint
    assert f"{long:,} tokens" in hint
    assert "too_long: truncate" in hint


def test_tools_column_with_messages_is_refused(process: Process) -> None:
    chat = {"task": "chat", "messages": "m", "prompt": None, "response": None}
    lines = [{"m": [{"role": "user", "content": "x"}, {"role": "assistant", "content": str(n)}]} for n in range(4)]
    assert len(process([{**line, "tools": None} for line in lines], **chat)) == 4
    assert len(process([{**line, "tools": []} for line in lines], **chat)) == 4
    lines[2]["tools"] = [{"name": "f"}]
    with raises(DataError, "unseen-tools", "`tools`", "data.tools", where="rows.jsonl:3"):
        process(lines, **chat)
    renamed = {"file": "rows.jsonl", "rename": {"tools": "unused"}}
    assert len(process(lines, **chat, source=renamed)) == 4


def test_notes_name_control_tokens_that_a_row_contains(process: Process) -> None:
    given_rows = rows(4)
    given_rows[1]["answer"] = "one<|im_end|>"
    given_rows[3]["question"] = "<|im_start|>user"
    assert [row.notes.control_token for row in process(given_rows)] == ["", "<|im_end|>", "", "<|im_start|>"]
    text = {"task": "text", "text": "{question} {answer}", "prompt": None, "response": None}
    assert [bool(row.notes.control_token) for row in process(given_rows, **text)] == [False, True, False, True]
    assert not any(row.notes.control_token for row in process(given_rows, **text, control_tokens=True))


# --- dropped and cut ---


def test_dropped_rows_are_in_the_ledger_with_a_reason(process: Process) -> None:
    given_rows = rows(6)
    given_rows[1]["answer"] = " "
    given_rows[3]["question"] = None
    processed = process(given_rows)
    assert [row.entry.status for row in processed] == ["kept", "dropped", "kept", "dropped", "kept", "kept"]
    assert (processed[1].entry.reason, processed[3].entry.reason) == (
        "cell `answer` is empty",
        "cell `question` is empty",
    )
    for row in (processed[1], processed[3]):
        assert (row.entry.split, row.entry.id, row.entry.tokens, row.example, row.tokens) == (None, None, 0, None, None)


@pytest.mark.parametrize(("dropped", "allowed", "accepted"), [
    (0, 0.0, True), (1, 0.0, False), (1, 0.1, True), (2, 0.1, False), (2, 0.2, True), (10, 0.9, False),
])  # fmt: skip
def test_too_many_dropped_rows_are_an_error(process: Process, dropped: int, allowed: float, accepted: bool) -> None:
    given_rows = rows(10)
    for row in given_rows[:dropped]:
        row["answer"] = ""
    if accepted:
        assert (
            sum(row.entry.status == "dropped" for row in process(given_rows, max_dropped_fraction=allowed)) == dropped
        )
        return
    with raises(DataError, "too-many-dropped", f"{dropped} of 10 rows", "`answer` is empty, first rows.jsonl:1"):
        process(given_rows, max_dropped_fraction=allowed)


def test_long_rows_are_dropped_or_truncated(process: Process) -> None:
    given_rows = rows(4)
    given_rows[2]["answer"] = "word " * 40
    whole = process(given_rows)[2]
    assert whole.tokens is not None
    size = len(whole.tokens.input_ids)
    assert process(given_rows, max_tokens_per_example=size)[2].entry.status == "kept"
    dropped = process(given_rows, max_tokens_per_example=size - 1)[2]
    assert (dropped.entry.status, dropped.entry.reason) == ("dropped", f"longer than {size - 1} tokens")
    cut = process(given_rows, max_tokens_per_example=30, too_long="truncate")[2]
    assert cut.tokens is not None
    assert (cut.entry.status, cut.entry.tokens) == ("cut", 30)
    assert cut.tokens.input_ids == whole.tokens.input_ids[:30]
    assert cut.tokens.trained == whole.tokens.trained[:30]
    assert cut.entry.trained == sum(whole.tokens.trained[:30]) > 0


def test_row_without_trained_tokens_after_truncation_is_dropped(process: Process) -> None:
    given_rows = rows(4)
    given_rows[1]["question"] = "word " * 40
    processed = process(given_rows, max_tokens_per_example=30, too_long="truncate")
    assert processed[1].entry.reason == "has no trained token after truncation"
    assert [row.entry.status for row in processed] == ["kept", "dropped", "kept", "kept"]


def test_long_document_is_split_into_blocks_of_one_split_and_group(process: Process) -> None:
    text = {"task": "text", "text": "{question} {answer}", "prompt": None, "response": None, "max_dropped_fraction": 0}
    given_rows = rows()
    for row in given_rows[::5]:
        row["answer"] = f"It is {row['tree']}, a number that has many digits. " * 3
    whole = process(given_rows, **text)
    processed = process(given_rows, **text, max_tokens_per_example=40, too_long="split")
    assert [row for row in processed if row.entry.block is None] == [
        row for row in whole if row.entry.row % 5 != 1 and row.entry.tokens <= 40
    ]
    assert len({row.entry.id for row in processed}) == len(processed)
    for document in whole[::5]:
        blocks = [row for row in processed if row.entry.row == document.entry.row]
        assert [row.entry.block for row in blocks] == [(i, len(blocks)) for i in range(1, len(blocks) + 1)]
        assert len(blocks) > 2
        assert document.example is not None
        assert document.tokens is not None
        ids = []
        for row in blocks:
            assert row.example is not None
            assert row.tokens is not None
            assert (row.entry.status, row.entry.where) == ("kept", document.entry.where)
            assert (row.entry.split, row.example.group) == (document.entry.split, document.example.group)
            assert row.entry.id == row.example.id == row.tokens.example_id
            assert row.entry.tokens == len(row.tokens.input_ids) <= 40
            assert row.row_turns == document.example.turns
            ids += row.tokens.input_ids[1:]
        assert tuple(ids) == document.tokens.input_ids[1:]
        assert sum(row.entry.trained for row in blocks) == document.entry.trained


class Fixed(Task):
    """A task that renders every row the same."""

    stop_ids = (2,)

    def __init__(self, trained: tuple[bool, ...]) -> None:
        self._trained = trained

    def parse(self, row: Any) -> tuple[Turn, ...]:
        return Turn("user", row["question"], False), Turn("assistant", row["answer"], True)

    def render(self, turns: Any, example_id: str = "") -> TokenizedExample:
        return TokenizedExample(example_id, tuple(range(len(self._trained))), self._trained)

    def encode_prompt(self, turns: Any) -> list[int]:
        return []

    def reference(self, turns: Any) -> str:
        return ""

    def decode_answer(self, ids: Any) -> str:
        return ""

    def prompt_turns(self, row: Any) -> tuple[Turn, ...]:
        return ()

    def user_turn(self, text: str) -> tuple[Turn, ...]:
        return ()


@pytest.mark.parametrize(("trained", "is_kept", "count"), [
    ((True, False), False, 0),  # the first token is never predicted
    ((True,), False, 0), ((False, False), False, 0), ((False, True), True, 1), ((True, True, True), True, 2),
])  # fmt: skip
def test_row_without_trained_tokens_is_dropped(
    process: Process, trained: tuple[bool, ...], is_kept: bool, count: int
) -> None:
    if not is_kept:
        with raises(DataError, "too-many-dropped", "no trained token"):
            process(rows(1), by=Fixed(trained))
        return
    [processed] = process(rows(1), by=Fixed(trained))
    assert (processed.entry.status, processed.entry.trained) == ("kept", count)


def test_signal_interrupts_processing(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_requested", [2])
    with pytest.raises(Interrupted):
        process()
