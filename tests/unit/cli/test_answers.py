"""`generate` and `chat` read prompts and rows, print answers, and refuse contradicting options."""

import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tuned import CHAT, TEXT, tuned_model

from tunesmith.cli import app
from tunesmith.cli.answers import answer_file_to, read_row
from tunesmith.cli.boundary import run_command
from tunesmith.core.errors import RecipeError
from tunesmith.core.jsonl import read_jsonl
from tunesmith.inference.chatter import open_chatter
from tunesmith.inference.request import Answer
from tunesmith.inference.sampling import Sampling

Tuned = Callable[[dict[str, Any]], str]
Run = Callable[..., tuple[int, str, str]]
SAMPLED = ("--temperature", "1", "--seed", "3")


@pytest.fixture
def tuned(tiny: Path, tmp_path: Path) -> Tuned:
    """Return a function that makes a tuned model from the `data` section of a recipe."""
    return lambda data: tuned_model(tiny, tmp_path / "tuned", data)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line and returns (exit code, stdout, stderr)."""

    def command(*arguments: str) -> tuple[int, str, str]:
        code = run_command(app, arguments)
        return code, *capsys.readouterr()

    return command


def test_read_row_splits_at_the_first_equals_sign() -> None:
    assert read_row(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}


@pytest.mark.parametrize("pairs", [["a"], ["=1"], ["a=1", "a=2"]])
def test_read_row_refuses_malformed_and_repeated_columns(pairs: list[str]) -> None:
    with raises(RecipeError, "usage", where="--row"):
        read_row(pairs)


def test_rows_of_a_file_keep_their_ids_and_order(tuned: Tuned, run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "q7", "mr": "one", "ref": "1"}\n{"id": "q3", "mr": "two and three", "ref": "2"}\n')
    without_reference = tmp_path / "without.csv"
    without_reference.write_text("mr\none\n")
    model = tuned(CHAT)
    code, out, err = run("generate", model, "--file", str(rows), "--max-new-tokens", "4", "--json")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["id"], line["row"], line["reference"]) for line in lines] == [("q7", 1, "1"), ("q3", 2, "2")]
    code, out, _ = run("generate", model, "--file", str(without_reference), "--max-new-tokens", "4", "--json")
    [line] = [json.loads(line) for line in out.splitlines()]
    assert (code, line["prediction"], line["id"]) == (0, lines[0]["prediction"], 1)
    assert "reference" not in line
    several = tuned({**CHAT, "references": ["ref", "ref2"]})
    rows.write_text('{"mr": "one", "ref": "1", "ref2": ["2", "3"]}\n{"mr": "one", "ref2": "2"}\n{"mr": "one"}\n')
    out = run("generate", several, "--file", str(rows), "--max-new-tokens", "4", "--json")[1]
    found = [json.loads(line).get("reference") for line in out.splitlines()]
    assert found == [["1", "2", "3"], "2", None]
    one_row = ("generate", model, "--row", "mr=one", "--max-new-tokens", "4")
    assert json.loads(run(*one_row, "--json")[1])[0]["answer"] == line["prediction"]
    assert run("generate", model, "--prompt", "one", "--max-new-tokens", "4")[1] == run(*one_row)[1]


def test_generate_notes_a_missing_prompt_template(tiny: Path, tuned: Tuned, run: Run) -> None:
    options = ("--prompt", "one", "--max-new-tokens", "2")
    assert "note: " in run("generate", str(tiny), *options)[2]
    assert "note: " in run("generate", tuned(TEXT), *options)[2]
    assert run("generate", tuned(CHAT), *options)[2] == ""


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--prompt", "a", "--file", "x.csv"],
        ["--row", "mr=a", "--file", "x.csv"],
        ["--row", "mr=a", "--file", "folder"],
        ["--row", "mr"],
        ["--prompt", "a", "--out", "y.jsonl"],
        ["--file", "-", "--out", "y.jsonl"],
        ["--file", "x.csv", "--restart"],
    ],
)
def test_contradicting_inputs_are_refused(options: list[str], tiny: Path, run: Run) -> None:
    code, out, _ = run("generate", str(tiny), *options, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "usage")


def test_samples_use_consecutive_seeds(tuned: Tuned, run: Run, tmp_path: Path) -> None:
    model = tuned(CHAT)
    options = ("--max-new-tokens", "6", "--json", "--temperature", "1")
    samples = ("--seed", "3", "--samples", "2")
    code, out, _ = run("generate", model, "--prompt", "one", "--prompt", "two", *options, *samples)
    answers = json.loads(out)
    assert (code, [(answer["prompt"], answer["sample"]) for answer in answers]) == (
        0, [("one", 0), ("one", 1), ("two", 0), ("two", 1)],
    )  # fmt: skip
    assert len({answer["answer"] for answer in answers}) == 4
    for answer in answers:
        seed = str(3 + answer.pop("sample"))
        alone = run("generate", model, "--prompt", answer["prompt"], *options, "--seed", seed)[1]
        assert json.loads(alone) == [answer]
    rows = tmp_path / "rows.csv"
    rows.write_text("mr,ref\none,1\ntwo,2\n")
    out = run("generate", model, "--file", str(rows), *options, *samples)[1]
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["row"], line["sample"], line["reference"]) for line in lines] == [
        (1, 0, "1"), (1, 1, "1"), (2, 0, "2"), (2, 1, "2"),
    ]  # fmt: skip
    assert [line["prediction"] for line in lines] == [answer["answer"] for answer in answers]


def test_an_answer_ends_before_a_stop_string(tuned: Tuned, run: Run) -> None:
    command = ("generate", tuned(CHAT), "--prompt", "one", "--max-new-tokens", "20", *SAMPLED, "--json")
    [whole] = [answer["answer"] for answer in json.loads(run(*command)[1])]
    stop = whole[7:9]
    [cut] = [answer["answer"] for answer in json.loads(run(*command, f"--stop={stop}", "--stop", "absent")[1])]
    assert cut == whole[: whole.index(stop)]


def test_an_output_file_has_the_answers_of_stdout_and_is_asked_once(tuned: Tuned, run: Run, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "new" / "answers.jsonl"
    rows.write_text("id,mr,ref\nq1,one,1\nq2,two and three,2\nq3,four,3\n")
    options = ("--file", str(rows), "--max-new-tokens", "4", "--json", *SAMPLED, "--samples", "2")
    model = tuned(CHAT)
    printed = run("generate", model, *options)[1].splitlines()
    code, result, err = run("generate", model, *options, "--out", str(out))
    assert (code, json.loads(result)) == (0, {"out": str(out), "answers": 6, "failed": 0})
    assert "answers 6/6" in err
    written = out.read_text().splitlines()
    assert sorted(written) == sorted(printed)
    out.write_text("".join(line + "\n" for line in written[:4]) + written[4][:20])  # killed in the fifth answer
    assert run("generate", model, *options, "--out", str(out))[0] == 0
    assert out.read_text().splitlines()[:4] == written[:4]
    assert sorted(out.read_text().splitlines()) == sorted(printed)


def test_answers_of_another_job_are_kept_without_restart(tuned: Tuned, run: Run, tmp_path: Path) -> None:
    rows, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    rows.write_text("\ufeffone\u2028still\n\n two \n")
    model = tuned(CHAT)

    def generate(*options: str) -> str | None:
        command = ("generate", model, "--file", str(rows), "--out", str(out), "--json", *options)
        _, printed, _ = run(*command)
        error: str | None = json.loads(printed).get("error", {}).get("code")
        return error

    assert generate("--max-new-tokens", "2") is None
    lines = list(read_jsonl(out))
    assert {line["row"]: line["prompt"] for line in lines} == {
        1: "Be brief.\n\nSay one\u2028still.", 3: "Be brief.\n\nSay  two .",
    }  # fmt: skip
    before = out.read_bytes()
    assert generate("--max-new-tokens", "3") == "inputs-changed"
    rows.write_text("one\n")
    assert generate("--max-new-tokens", "2") == "inputs-changed"
    assert out.read_bytes() == before
    assert generate("--max-new-tokens", "2", "--restart") is None
    assert len(out.read_text().splitlines()) == 1
    for foreign in (tmp_path / "notes.jsonl", rows):
        foreign.write_text("mine\n")
        code, printed, _ = run("generate", model, "--file", str(rows), "--out", str(foreign), "--restart", "--json")
        assert (code, json.loads(printed)["error"]["code"], foreign.read_text()) == (2, "exists", "mine\n")


def test_a_hyphen_is_standard_input(tuned: Tuned, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("generate", tuned(CHAT), "--max-new-tokens", "2")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert run(*command, "--file", "-") == run(*command, "--prompt", "one", "--prompt", "two")


def test_a_pattern_and_a_folder_are_all_their_files(tuned: Tuned, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.jsonl").write_text(f'{{"id": "{name}", "mr": "{name}"}}\n')
    model = tuned(CHAT)
    for place, files in enumerate((f"{folder}/*.jsonl", str(folder))):
        out = tmp_path / f"{place}.jsonl"
        command = ("generate", model, "--file", files, "--out", str(out), "--max-new-tokens", "2")
        assert run(*command)[0] == 0
        assert [line["id"] for line in read_jsonl(out)] == ["one", "two"]
        assert run(*command)[0] == 0
        assert len(list(read_jsonl(out))) == 2
    (folder / "two.jsonl").write_text('{"id": "two", "mr": "another"}\n')
    code, printed, _ = run(*command, "--json")
    assert (code, json.loads(printed)["error"]["code"]) == (2, "inputs-changed")


def test_memory_does_not_grow_with_the_rows(tuned: Tuned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answer_at_once(model: Any, prompts: list[Any], **settings: Any) -> Iterator[Answer]:
        yield from (Answer(place, (5,), True) for place in range(len(prompts)))

    monkeypatch.setattr("tunesmith.inference.predict.generate", answer_at_once)
    monkeypatch.setattr("tunesmith.inference.file_prompts._WINDOW", 100)
    chatter, peaks = open_chatter(tuned(CHAT)), []
    for count in (400, 200, 4000):  # the first fills caches
        rows, out = tmp_path / f"{count}.jsonl", tmp_path / f"{count}.answers.jsonl"
        rows.write_text("".join(f'{{"mr": "row {i % 50}"}}\n' for i in range(count)))
        tracemalloc.start()
        result = answer_file_to(out, chatter, str(rows), samples=1, restart=False, sampling=Sampling())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result == {"out": str(out), "answers": count, "failed": 0}
    # 26 bytes a row, and garbage that has not been collected yet; a row with its prompt takes 1,000.
    assert peaks[2] < peaks[1] + 1_000_000


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", "-1"],
        ["--temperature", "hot"],
        ["--top-k", "5"],
        ["--temperature", "1", "--top-k", "0"],
        ["--temperature", "1", "--top-p", "2"],
        ["--temperature", "1", "--min-p", "-1"],
        ["--repetition-penalty", "0"],
        ["--seed", "1"],
        ["--stop", ""],
        ["--max-new-tokens", "0"],
    ],
)
@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["chat"]], ids=["generate", "chat"])
def test_wrong_sampling_options_are_refused_before_the_model_is_opened(
    command: list[str], options: list[str], run: Run
) -> None:
    code, out, err = run(command[0], "no-such-model", *command[1:], *options)
    assert (code, out) == (2, "")
    assert "no-such-model" not in err
    assert "hint: " in err


@pytest.mark.parametrize(
    "options", [["--samples", "2"], ["--samples", "0"], ["--beams", "0"], ["--beams", "2", "--temperature", "1"]]
)
def test_contradicting_options_are_refused_before_the_model_is_opened(options: list[str], run: Run) -> None:
    code, _, err = run("generate", "no-such-model", "--prompt", "a", *options)
    assert code == 2
    assert "no-such-model" not in err


@pytest.mark.slow
def test_a_seed_repeats_an_answer_in_another_process(tiny: Path, run: Run) -> None:
    command = ["generate", str(tiny), "--prompt", "one", "--prompt", "two", "--max-new-tokens", "8", *SAMPLED, "--json"]
    expected = run(*command)[1]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        process = subprocess.run(
            [sys.executable, "-m", "tunesmith", *command], capture_output=True, text=True, check=True, env=environment
        )
        assert process.stdout == expected
