"""Bad input: every mistake is reported with its place and the right exit code, before torch is imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe, save_model, write_rows

NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise AssertionError("imported " + name)
sys.meta_path.insert(0, Refuse())
from tunesmith.cli import main
main()
"""


def tunesmith(*arguments: str, program: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    command = [sys.executable, *(program or ["-m", "tunesmith"]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_three_mistakes_are_reported_together_before_torch_is_imported(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: try\nmodel: {base: x, precison: bf16}\n"
        "data:\n  source: {file: rows.csv}\n  task: chatt\n"
        "tuning: {method: lora}\ntrain:\n  learning_rate: fast\nevaluate: {metrics: [rouge], primary: rougeL}\n"
    )
    for command in ("plan", "run", "show"):
        done = tunesmith(command, str(file), program=["-c", NO_TORCH])
        assert done.returncode == 2, done.stderr
        assert "recipe.yaml:2: model.precison: unknown key; did you mean `precision`?" in done.stderr
        assert "recipe.yaml:5: data.task: `chatt`" in done.stderr or ("recipe.yaml:3: data: `chatt`" in done.stderr)
        assert "recipe.yaml:8: train.learning_rate" in done.stderr
        assert "Traceback" not in done.stderr


def rows_of(broken: str) -> Any:
    """Return a function that damages the rows in one way."""

    def spoil(path: Path) -> None:
        lines = path.read_text().splitlines()
        if broken == "missing column":
            lines = [line.replace('"answer"', '"anser"') for line in lines]
        elif broken == "empty file":
            lines = []
        elif broken == "broken line 713":
            lines = lines * 20
            lines[712] = '{"question": "Say'
        elif broken == "empty cell":
            lines = [line.replace('"answer": "', '"answer": "" , "old": "') for line in lines]
        elif broken == "null cell":
            lines = [json.dumps({**json.loads(line), "answer": None}) for line in lines]
        if broken == "not utf-8":
            path.write_bytes("\n".join(lines).encode() + b'\n{"question": "\xff\xfe", "answer": "x"}\n')
            return
        path.write_text("\n".join(lines) + ("\n" if lines else ""))

    return spoil


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("missing column", "answer"),
        ("empty file", "empty"),
        ("broken line 713", "rows.jsonl:713"),
        ("empty cell", "cell `answer` is empty"),
        ("null cell", "cell `answer` is empty"),
        ("not utf-8", "UTF-8"),
    ],
)
def test_bad_rows_end_with_exit_code_3(tmp_path: Path, tiny: Path, broken: str, told: str) -> None:
    from tunesmith import plan_run
    from tunesmith.core.errors import DataError

    file = recipe(tmp_path, tiny)
    rows_of(broken)(write_rows(tmp_path / "rows.jsonl"))
    with pytest.raises(DataError) as caught:
        plan_run(file)
    assert told in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_template_that_drops_the_answer_ends_with_exit_code_3(tmp_path: Path) -> None:
    turn = "<|im_start|>{{ m['content'] }}<|im_end|>"
    template = "{% for m in messages %}{% if m['role'] == 'user' %}" + turn + "{% endif %}{% endfor %}"
    model = save_model(tmp_path / "model", "llama", template=template)
    done = tunesmith("plan", str(recipe(tmp_path, model)))
    assert done.returncode == 3, done.stderr
    assert "drops" in done.stderr
    assert "assistant" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_commands_and_options_end_with_exit_code_2() -> None:
    assert tunesmith("trian").returncode == 2
    assert tunesmith("run").returncode == 2
    assert tunesmith("models", "--colour").returncode == 2
