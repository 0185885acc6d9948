"""Help and errors appear quickly, because slow libraries are imported only by the commands that need them."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contract.sources import ROOT
from tests.support.tiny import recipe, save_model

SLOW = {"torch", "transformers", "datasets", "peft", "numpy", "pandas", "pyarrow", "tokenizers", "huggingface_hub"}
WRONG = "name: x\nmodle: {base: a/b}\ntrain: {learning_rate: 2e-4, epoks: 1}\n"


def tunesmith(*arguments: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a command; return the finished process and the modules that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "tunesmith", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=120)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    done.stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
    assert "tunesmith.cli" in imported
    return done, imported


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_imports_nothing_slow(arguments: list[str], tmp_path: Path) -> None:
    done, imported = tunesmith(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert imported & SLOW == set()


def test_help_takes_little_work(tmp_path: Path) -> None:
    """The limit is half a second; the processor's time is measured, because other work may run at the same time."""
    best = float("inf")
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "tunesmith", "--help"], capture_output=True, check=True, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 1.0


@pytest.mark.parametrize("command", ["plan", "run", "show"])
def test_a_wrong_recipe_is_reported_without_slow_imports(command: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(WRONG, encoding="utf-8")
    done, imported = tunesmith(command, "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "recipe.yaml:2: modle: unknown key; did you mean `model`?" in done.stderr
    assert "recipe.yaml:3: train.epoks: unknown key; did you mean `epochs`?" in done.stderr
    assert imported & {"torch", "transformers", "datasets", "peft"} == set()
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["rnu", "recipe.yaml"], "rnu"),
        (["run"], "recipe"),
        (["run", "none.yaml"], "none.yaml"),
        (["compare", "."], "run"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], word: str, tmp_path: Path) -> None:
    done, imported = tunesmith(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert word in (done.stdout + done.stderr).lower()
    assert "Traceback" not in done.stderr
    assert "torch" not in imported


def test_import_tunesmith_imports_no_submodule(tmp_path: Path) -> None:
    code = "import sys, tunesmith; print(*sorted(m for m in sys.modules if m.startswith('tunesmith.')))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", ["plan", "prepare"])
def test_plan_and_prepare_import_no_torch(command: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "llama")
    done, imported = tunesmith(command, str(recipe(tmp_path, model)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert imported & (SLOW - {"numpy", "tokenizers", "huggingface_hub"}) == set()


@pytest.mark.slow
def test_generate_does_not_import_the_compiler_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)  # which the command line sets itself
    model = save_model(tmp_path / "model", "llama")
    done, imported = tunesmith("generate", str(model), "--prompt", "hi", "--max-new-tokens", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"torch", "peft"} <= imported
    assert "torch._inductor.compile_fx" not in imported
