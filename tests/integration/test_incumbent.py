"""Promotion against the incumbent: a better model moves the alias; a worse one, a tie or an unknown one does not."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import CHATML, recipe, save_model

from tunesmith import Registry, run_recipe
from tunesmith.cli import app
from tunesmith.cli.boundary import run_command
from tunesmith.core.errors import VerdictRefused
from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.evaluate.run_rows import RunRows

PERPLEXITY = {"metrics": ["perplexity", "rougeL"], "primary": "perplexity", "rows": 12, "max_new_tokens": 6}
PROMOTE = {"model": "tiny"}


def train(steps: int, rate: float = 0.01) -> dict[str, Any]:
    return {"learning_rate": rate, "max_steps": steps, "epochs": 100, "examples_per_step": 8, "schedule": "constant"}


def run(folder: Path, model: Path, name: str, /, *, until: str | None = None, **changes: Any) -> RunDir:
    sections = {"evaluate": PERPLEXITY, "promote": PROMOTE, **changes}
    return run_recipe(recipe(folder, model, **sections), out=folder / name, until=until)


def staged() -> int | None:
    return Registry.default().alias_target("tiny", "staging")


@pytest.fixture
def good(tmp_path: Path, tiny: Path) -> RunDir:
    """A run whose model is version 1 in staging."""
    good = run(tmp_path, tiny, "good", train=train(16))
    assert staged() == 1
    return good


def test_a_worse_model_does_not_replace_a_better_incumbent(
    tmp_path: Path, tiny: Path, good: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with raises(VerdictRefused, "verdict") as refused:
        run(tmp_path, tiny, "worse", train=train(3))
    worse = RunDir(tmp_path / "worse")
    assert refused.value.where == "tiny@staging (version 1)"
    assert read_json(worse.verdict)["verdict"] == "better"  # than the base
    against = read_json(worse.incumbent("tiny@1"))
    assert against["verdict"] == "not_better"
    assert against["primary"]["base"] == read_json(good.verdict)["primary"]["tuned"]
    assert staged() == 1
    assert [version.number for version in Registry.default().versions("tiny")] == [1]
    assert [(move.kind, move.before, move.after) for move in Registry.default().history("tiny")] == [
        ("move", None, 1),
        ("refusal", 1, 1),
    ]
    assert "tiny@1" in worse.report.read_text()
    assert run_command(app, ["run", str(worse.path)]) == 4
    assert "better than tiny@1" in capsys.readouterr().out
    with raises(VerdictRefused, "verdict"):
        run_command_or_raise(worse)


def run_command_or_raise(folder: RunDir) -> None:
    from tunesmith.promote.commands import promote_run

    promote_run(folder.path, force=False, reason=None)


def test_a_better_model_of_two_ranks_replaces_the_incumbent(tmp_path: Path, tiny: Path) -> None:
    """All ranks ask the incumbent in evaluation; rank 0 promotes without waiting for the others."""
    run(tmp_path, tiny, "first", train=train(3))
    file = recipe(tmp_path, tiny, evaluate=PERPLEXITY, promote=PROMOTE, train=train(16))
    second = RunDir(tmp_path / "second")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tunesmith"]
    done = subprocess.run(
        [*command, "run", str(file), "--out", str(second)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    [folder] = (second.path / "comparisons").iterdir()
    assert len(list(read_jsonl(folder / "generations.jsonl"))) == 11  # all test rows, answered by both ranks together
    assert staged() == 2
    promoted = read_json(second.stage("promote") / "manifest.json")
    assert (promoted["replaced"], promoted["incumbent"]["verdict"]) == (1, "better")
    assert promoted["incumbent"]["primary"]["base"] > promoted["incumbent"]["primary"]["tuned"]  # perplexity


def test_the_same_model_stays_where_it_is(tmp_path: Path, tiny: Path, good: RunDir) -> None:
    again = run(tmp_path, tiny, "again", train=train(16))
    promoted = read_json(again.stage("promote") / "manifest.json")
    assert (promoted["version"], promoted["replaced"], promoted["incumbent"]) == (1, None, None)
    assert len(Registry.default().history("tiny")) == 1


def test_a_tie_does_not_move_the_alias(tmp_path: Path, tiny: Path) -> None:
    evaluate = {**PERPLEXITY, "metrics": ["exact_match"], "primary": "exact_match"}
    forced = {**PROMOTE, "against": ["incumbent"]}
    run(tmp_path, tiny, "first", train=train(1, 1e-9), evaluate=evaluate, promote=forced)
    with raises(VerdictRefused, "verdict"):  # both write the same answers
        run(tmp_path, tiny, "second", train=train(2, 1e-9), evaluate=evaluate, promote=forced)
    against = read_json(RunDir(tmp_path / "second").incumbent("tiny@1"))
    assert (against["verdict"], against["primary"]["gain"]) == ("cannot_tell", 0.0)
    assert staged() == 1


def test_only_the_base_counts_if_the_recipe_asks_for_it(tmp_path: Path, tiny: Path, good: RunDir) -> None:
    worse = run(tmp_path, tiny, "worse", train=train(3), promote={**PROMOTE, "against": ["base"]})
    assert staged() == 2
    assert not worse.incumbent_verdicts


def test_the_base_in_staging_is_not_asked_again(tmp_path: Path, tiny: Path, good: RunDir) -> None:
    second = run(tmp_path, tiny, "second", model={"base": "tiny@staging", "precision": "fp32"}, train=train(16, 0.003))
    own, against = read_json(second.verdict), read_json(second.incumbent("tiny@1"))
    assert against["primary"] == own["primary"]
    assert not (second.path / "comparisons").exists()
    assert staged() == 2


ROUGE = {"metrics": ["rougeL", "perplexity"], "primary": "rougeL", "rows": 8, "max_new_tokens": 8}


def test_the_incumbent_gets_its_own_template_and_tokenizer(tmp_path: Path, tiny: Path) -> None:
    other = save_model(tmp_path / "other", "gpt2", template=CHATML)
    data = {"source": {"file": "rows.jsonl"}, "split": {"valid": 0.15, "test": 0.2}}
    first = {**data, "task": "completion", "prompt": "{question} =>", "response": " {answer}"}
    only = {**PROMOTE, "against": ["incumbent"]}
    run(tmp_path, other, "first", data=first, evaluate=ROUGE, promote=only, train=train(3))
    second = {**data, "task": "chat", "prompt": "Please: {question}", "response": "{answer}"}
    with raises(VerdictRefused, "verdict"):
        run(tmp_path, tiny, "second", data=second, evaluate=ROUGE, promote=only, train=train(3))
    [folder] = (tmp_path / "second" / "comparisons").iterdir()
    answers = list(read_jsonl(folder / "generations.jsonl"))
    own = {
        line["id"]: line for line in read_jsonl(RunDir(tmp_path / "second").evaluation("tuned") / "generations.jsonl")
    }
    assert answers
    for line in answers:
        assert line["prompt"].endswith(" =>")
        assert own[line["id"]]["prompt"] == f"Please: {line['prompt'].removesuffix(' =>')}"
        assert own[line["id"]]["reference"] == line["reference"]
    verdict = read_json(RunDir(tmp_path / "second").incumbent("tiny@1"))
    assert set(verdict["metrics"]) == {"rougeL"}
    assert any("perplexity" in reason for reason in verdict["reasons"])


def test_the_incumbent_gives_as_many_samples_as_the_tuned_model(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = {**ROUGE, "metrics": ["rougeL", "bleu"], "samples": 2, "sampling": {"temperature": 1.0}}
    only = {**PROMOTE, "against": ["incumbent"]}
    first = run(tmp_path, tiny, "first", evaluate=evaluate, promote=only, train=train(3))
    second = run(tmp_path, tiny, "second", until="evaluate", evaluate=evaluate, promote=only, train=train(12))
    own, against = read_json(first.verdict), read_json(second.incumbent("tiny@1"))
    assert against["primary"]["base"] == own["primary"]["tuned"]  # the same samples, as their seeds are the same
    assert against["corpus"]["bleu"]["base"] == own["corpus"]["bleu"]["tuned"]
    assert against["corpus"]["bleu"]["answers"] == against["health"]["base"]["rows"] == 16
    assert against["corpus"]["bleu"]["tuned"] == read_json(second.verdict)["corpus"]["bleu"]["tuned"]
    assert "tiny@1" in next(line for line in second.report.read_text().splitlines() if "Corpus" in line)
    monkeypatch.setattr(RunRows, "ask", None)  # `compare` finds the answers that evaluation stored
    capsys.readouterr()
    assert run_command(app, ["compare", "tiny@1", str(second.path), "--on", str(second.path), "--json"]) == 0
    [pair] = json.loads(capsys.readouterr().out)["pairs"]
    assert {name: pair[name] for name in ("primary", "corpus", "health")} == {
        name: against[name] for name in ("primary", "corpus", "health")
    }


def test_an_incumbent_that_cannot_be_compared_stays_unless_forced(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reworded = {
        "source": {"file": "rows.jsonl"},
        "task": "chat",
        "prompt": "Please: {question}",
        "response": "{answer}",
    }
    run(tmp_path, tiny, "first", train=train(3), data={**reworded, "split": {"valid": 0.15, "test": 0.2}})
    capsys.readouterr()
    with raises(VerdictRefused, "not-comparable", "perplexity"):
        run(tmp_path, tiny, "second", train=train(16))
    before_training = capsys.readouterr().err.partition("train: starts")[0]
    assert "tiny@1" in before_training
    assert staged() == 1
    assert run_command(app, ["promote", str(tmp_path / "second")]) == 4
    forced = ["promote", str(tmp_path / "second"), "--force", "--reason", "checked by hand"]
    assert run_command(app, forced) == 0
    assert staged() == 2
    assert [move.kind for move in Registry.default().history("tiny")] == ["move", "refusal", "refusal", "move"]


def test_an_incumbent_without_its_files_stays(tmp_path: Path, tiny: Path, good: RunDir) -> None:
    version = Registry.default().resolve("tiny@1")
    (Registry.default().folder(version) / "adapter_model.safetensors").unlink()
    with raises(VerdictRefused, "not-comparable", "adapter_model"):
        run(tmp_path, tiny, "second", train=train(24))
    assert staged() == 1


def promote_together(folder: Path, first: bool, both: Any, moved: Any) -> None:
    """Promote a run in a process of its own, which begins to move the alias when the other one does, too."""
    move = Registry.move

    def move_together(self: Registry, *arguments: Any, **options: Any) -> None:
        Registry.move = move  # type: ignore[method-assign]
        both.wait(120)
        if not first:
            moved.wait(120)
        try:
            move(self, *arguments, **options)
        finally:
            moved.set()

    Registry.move = move_together  # type: ignore[method-assign]
    sys.exit(run_command(app, ["promote", str(folder)]))


def test_of_two_processes_that_promote_at_once_one_wins_and_both_are_logged(tmp_path: Path, tiny: Path) -> None:
    run(tmp_path, tiny, "first", train=train(3))
    runs = [run(tmp_path, tiny, name, until="evaluate", train=train(steps)) for name, steps in (("a", 24), ("b", 12))]
    processes = multiprocessing.get_context("spawn")
    shared = processes.Barrier(2), processes.Event()
    started = [
        processes.Process(target=promote_together, args=(folder.path, place == 0, *shared))
        for place, folder in enumerate(runs)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
    assert [process.exitcode for process in started] == [0, VerdictRefused.exit_code]
    log = Registry.default().history("tiny", "staging")
    assert [(entry.kind, entry.before) for entry in log] == [("move", None), ("move", 1), ("refusal", staged())]
    assert read_json(runs[0].stage("promote") / "manifest.json")["version"] == staged()
    refused = log[-1].verdict
    assert refused is not None
    assert refused["primary"]["base"] == read_json(runs[0].verdict)["primary"]["tuned"]


def test_a_refusal_is_about_the_version_that_the_alias_points_at(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, tiny, "weak", train=train(3))
    run(tmp_path, tiny, "best", train=train(24))
    log_refusal, rolled_back = Registry.log_refusal, []

    def log_after_rollback(self: Registry, *arguments: Any, **options: Any) -> None:
        if not rolled_back:
            rolled_back.append(self.rollback("tiny", "staging"))
        log_refusal(self, *arguments, **options)

    monkeypatch.setattr(Registry, "log_refusal", log_after_rollback)
    middle = run(tmp_path, tiny, "middle", train=train(12))  # worse than version 2, better than version 1
    assert read_json(middle.stage("promote") / "manifest.json")["replaced"] == 1
    log = [(entry.kind, entry.before, entry.after) for entry in Registry.default().history("tiny", "staging")]
    assert log == [("move", None, 1), ("move", 1, 2), ("rollback", 2, 1), ("move", 1, 3)]
