"""The message for wrong usage names the arguments of the command, or the recipe's key that was meant."""

import json

import pytest

from tunesmith.cli import app
from tunesmith.cli.boundary import run_command


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("score", "FILE", "tunesmith score FILE"),
        ("plan --recipe r.yaml", "--recipe", "tunesmith plan RECIPE"),
        ("promote viggo@1 --alias production", "--alias", "tunesmith alias NAME@VERSION ALIAS"),
        ("promote viggo@1 production", "`production`", "tunesmith alias NAME@VERSION ALIAS"),
        ("promote viggo@1", "viggo@1", "tunesmith alias viggo@1 production"),
        ("promote runs/a --no-force", "--no-force", "tunesmith promote --help"),
        ("alias viggo@1", "ALIAS", "tunesmith alias VERSION ALIAS"),
        ("rollback", "MODEL", "tunesmith rollback MODEL"),
        ("compare a --frob", "--frob", "tunesmith compare --help"),
        ("compare a b --rows -3", "-3", "--rows 0"),
        ("generate m hello", "`hello`", "--prompt"),
        ("generate m --rows x.csv", "--rows", "--file"),
        ("status a b", "`b`", "tunesmith status --help"),
        ("plan r.yaml --train.epochs 3", "--train.epochs", "train.epochs=VALUE"),
        ("plan r.yaml --lr 1e-4", "--lr", "train.learning_rate=VALUE"),
        ("plan r.yaml --num-epochs=3", "--num-epochs", "train.epochs=VALUE"),
        ("sweep r.yaml --bar=0.5", "--bar", "--threshold"),
        ("sweep r.yaml --rung 2", "--rung", "--trial"),
        ("ladder r.yaml", "ladder", "tunesmith sweep"),
        ("run r.yaml --frob", "--frob", "tunesmith run --help"),
        ("sft r.yaml", "sft", "tunesmith run"),
        ("finetune r.yaml", "finetune", "tunesmith run"),
        ("frobnicate", "frobnicate", "tunesmith --help"),
        ("show r.yaml --stage tests", "tests", "tunesmith show --help"),
        ("show r.yaml --rows many", "many", "tunesmith show --help"),
    ],
)
def test_wrong_usage(line: str, message: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, [*line.split(), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "usage"
    assert message in error["message"]
    assert hint in error["hint"]
