"""`generate` gives the answers of evaluation: for a run's folder, a version of the registry, and rows of a file."""

import json
from pathlib import Path

import pytest
from tests.support.tiny import recipe

from tunesmith import plan_run, run_recipe
from tunesmith.cli import app
from tunesmith.cli.boundary import run_command
from tunesmith.core.jsonl import read_jsonl
from tunesmith.fetch.reference import resolve

DATA = {
    "source": {"file": "rows.jsonl", "rename": {"q": "question", "a": "answer"}}, "task": "chat",
    "system": "You know tree {tree}.",
    "prompt": "{question}\nTree: {tree}", "response": "{answer}", "split": {"valid": 0.15, "test": 0.2},
}  # fmt: skip


def test_generate_gives_the_answers_of_evaluation(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"learning_rate": 0.001, "max_steps": 2, "examples_per_step": 8}
    file = recipe(tmp_path, tiny, data=DATA, train=train, promote={"model": "trees", "min_gain": -1.0})
    theirs = (tmp_path / "rows.jsonl").read_text().replace('"question"', '"q"').replace('"answer"', '"a"')
    (tmp_path / "rows.jsonl").write_text(theirs)
    run = run_recipe(file, out=tmp_path / "run")
    told = list(read_jsonl(run.evaluation("tuned") / "generations.jsonl"))
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len({line["prediction"] for line in told}) > 1
    capsys.readouterr()

    def generate(*arguments: str) -> list[str]:
        assert run_command(app, ["generate", *arguments, "--json"]) == 0
        return capsys.readouterr().out.splitlines()

    line = told[0]
    row = json.loads(rows[line["row"] - 1])
    given = [f"--row=question={row['q']}", f"--row=tree={row['tree']}"]
    [answer] = json.loads("\n".join(generate(str(run), *given)))
    assert answer["answer"] == line["prediction"]
    asked = tmp_path / "asked.jsonl"
    for names in ({}, {"q": "question", "a": "answer"}):  # as in the source, and as the recipe names them
        chosen = [json.loads(rows[one["row"] - 1]) for one in told]
        asked.write_text("".join(json.dumps({names.get(k, k): v for k, v in one.items()}) + "\n" for one in chosen))
        found = [json.loads(one) for one in generate("trees@staging", "--file", str(asked))]
        assert [(one["prediction"], one["reference"]) for one in found] == [
            (one["prediction"], one["reference"]) for one in told
        ]

    # Every command accepts a run's folder as a model; it means the best checkpoint.
    assert resolve(str(run)).path == resolve(f"run:{run}").path
    (tmp_path / "next").mkdir()
    plain = {**DATA, "source": {"file": "rows.jsonl"}}
    plan_run(recipe(tmp_path / "next", run.path, data=plain, train=train))
