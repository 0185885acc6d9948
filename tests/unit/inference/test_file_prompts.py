"""The prompts of a file: what counts as one, and answers that depend on no other row."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tuned import CHAT, tuned_model

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.inference import file_prompts
from tunesmith.inference.chatter import Chatter, open_chatter
from tunesmith.inference.file_prompts import FilePrompts, answer_file_prompts
from tunesmith.inference.sampling import GREEDY, Sampling

Answers = list[dict[str, Any]]


@pytest.fixture
def chatter(tiny: Path, tmp_path: Path) -> Chatter:
    return open_chatter(tuned_model(tiny, tmp_path / "tuned", CHAT, precision="fp32"))


def test_lines_of_a_text_file_are_prompts(chatter: Chatter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffone\u2028still\n\n two \n".encode())
    prompts = FilePrompts(chatter, str(file))
    assert prompts.count == 2
    assert [(prompt.number, prompt.id, prompt.turns[-1].text) for prompt in prompts] == [
        (1, 1, "Say one\u2028still."), (3, 3, "Say  two ."),
    ]  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\nlast"))
    prompts = FilePrompts(chatter, "-")
    for _ in range(2):
        assert [(prompt.number, prompt.turns[-1].text) for prompt in prompts] == [(1, "Say one."), (3, "Say last.")]
    for content, code in ((b"\n", "no-prompts"), (b"\xff", "encoding")):
        file.write_bytes(content)
        with raises(DataError, code):
            FilePrompts(chatter, str(file))


def test_a_wrong_row_is_found_before_any_is_asked(chatter: Chatter, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"mr": "one"}\n' * 3 + '{"mr": ""}\n')
    with raises(DataError, "data", where="rows.jsonl:4"):
        FilePrompts(chatter, str(file))
    file.write_text('{"name": "one"}\n')
    with raises(RecipeError, "prompt-columns", where="rows.jsonl:1"):
        FilePrompts(chatter, str(file))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, seed=3)], ids=["greedy", "sampled"])
def test_answers_depend_neither_on_the_window_nor_on_what_is_finished(
    chatter: Chatter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"id": f"q{i}", "mr": f"{'long ' * (i % 5)}{i}"} for i in range(11)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = 2 if sampling.temperature else 1
    ask: Callable[..., Answers] = lambda **changes: list(  # noqa: E731
        answer_file_prompts(
            chatter, FilePrompts(chatter, str(file)), sampling=sampling, samples=samples, max_new_tokens=5, **changes
        )
    )
    whole = ask()
    key = lambda line: (line["row"], line.get("sample", 0))  # noqa: E731
    assert sorted(map(key, whole)) == [(row, sample) for row in range(1, 12) for sample in range(samples)]
    assert len({line["prediction"] for line in whole}) > 5
    monkeypatch.setattr(file_prompts, "_WINDOW", 3)
    assert sorted(ask(), key=key) == sorted(whole, key=key)
    missing = ask(is_finished=lambda row, sample: row != 7 or sample == 1)
    assert missing == [line for line in whole if key(line) == (7, 0)]


def test_a_prompt_that_cannot_be_encoded_has_an_error(
    chatter: Chatter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"mr": "one"}\n{"mr": "two"}\n')
    encode = chatter.encode_prompt

    def refuse_second(turns: Any) -> Any:
        if "two" in turns[-1].text:
            raise DataError("refused", code="template-refuses")
        return encode(turns)

    monkeypatch.setattr(chatter, "encode_prompt", refuse_second)
    prompts = FilePrompts(chatter, str(file))
    lines = {line["row"]: line for line in answer_file_prompts(chatter, prompts, sampling=GREEDY, max_new_tokens=3)}
    assert [lines[row]["error"] for row in (1, 2)] == [None, "refused"]
    assert lines[2]["prompt"].endswith("Say two.")


def test_a_long_prompt_does_not_shorten_the_answers_of_others(chatter: Chatter, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"mr": "one"}) + "\n" + json.dumps({"mr": "x" * 470}) + "\n")
    lines = {
        line["row"]: line
        for line in answer_file_prompts(chatter, FilePrompts(chatter, str(file)), sampling=Sampling(1.0, seed=0))
    }
    short, long = (len(chatter.tokenizer.encode_trusted(lines[row]["prediction"])) for row in (1, 2))
    assert [lines[row]["error"] for row in (1, 2)] == [None, None]
    assert long < 30 < short
