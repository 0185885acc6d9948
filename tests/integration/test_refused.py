"""A refused command changes no file or folder; tested for every subcommand and public function."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
from tests.support.cases import Command
from tests.support.tiny import state

from tunesmith import Registry, TunesmithError, export_model, open_chatter, plan_run, run_recipe, run_sweep
from tunesmith.cli import app

HI = ("--prompt", "hi")
SLURM = ("--on", "slurm")
SCORES, ANSWERS = (f"runs/a/evaluate/tuned/{name}.jsonl" for name in ("scores", "generations"))

# What is wrong, the arguments, the exit code.
RECIPES: list[tuple[str, tuple[str, ...], int]] = [
    ("a wrong key", ("recipe.yaml", "--out", "new", "train.epoch=2"), 2),
    ("no such recipe", ("none.yaml", "--out", "new"), 2),
    ("no rows", ("wrong/data.yaml", "--out", "new"), 3),
    ("no base", ("wrong/base.yaml", "--out", "new"), 2),
    (
        "no such metric",
        ("recipe.yaml", "--out", "new", "evaluate.metrics=[gone:here]", "evaluate.primary=gone:here"),
        2,
    ),
    ("a folder of other things", ("recipe.yaml", "--out", "wrong"), 2),
    ("a file as its folder", ("recipe.yaml", "--out", "rows.jsonl"), 2),
    ("a folder below a file", ("recipe.yaml", "--out", "rows.jsonl/new"), 2),
    ("a run of another recipe", ("recipe.yaml", "--out", "runs/a", "seed=3"), 2),
    ("other settings", ("runs/a", "train.learning_rate=1"), 2),
    ("another folder for a run", ("runs/a", "--out", "new"), 2),
    ("nothing to wait for", ("recipe.yaml", "--out", "new", "--detach"), 2),
    ("machines of no cluster", ("recipe.yaml", "--out", "new", "--nodes", "2"), 2),
    ("no Slurm", ("recipe.yaml", "--out", "new", *SLURM), 2),
    ("no such place", ("recipe.yaml", "--out", "new", "--on", "moon"), 2),
]
# The same by command.
REFUSED: dict[str, list[tuple[str, tuple[str, ...], int]]] = {
    "init": [
        ("it exists", ("chat", "--out", "recipe.yaml"), 2),
        ("a link to nothing", ("chat", "--out", "link"), 2),
        ("no such template", ("novel", "--out", "new.yaml"), 2),
        ("no such option", ("chat", "--out", "new.yaml", "--frob"), 2),
        ("a folder", ("chat", "--out", "runs"), 2),
        ("below a file", ("chat", "--out", "rows.jsonl/new.yaml"), 2),
    ],
    "plan": [
        ("a wrong key", ("recipe.yaml", "train.epoch=2"), 2),
        ("other settings", ("runs/a", "train.learning_rate=1"), 2),
        ("no rows", ("wrong/data.yaml",), 3),
        ("no such recipe", ("none.yaml",), 2),
    ],
    "show": [
        ("no such split", ("recipe.yaml", "--html", "page.html", "--split", "dev"), 2),
        ("a wrong key", ("recipe.yaml", "train.epoch=2", "--html", "page.html"), 2),
        ("no rows", ("wrong/data.yaml", "--html", "page.html"), 3),
        ("changes to what is prepared", ("runs/a", "seed=3", "--html", "page.html"), 2),
        ("a damaged run", ("runs/damaged", "--html", "page.html"), 6),
        ("a folder", ("recipe.yaml", "--html", "runs"), 2),
        ("below a file", ("recipe.yaml", "--html", "rows.jsonl/page.html"), 2),
        ("the recipe itself", ("recipe.yaml", "--html", "recipe.yaml"), 2),
        ("its rows", ("recipe.yaml", "--html", "rows.jsonl"), 2),
    ],
    **{command: RECIPES for command in ("run", "prepare", "train", "evaluate")},
    "replicate": [
        *((problem, (*arguments, "replicates=3"), code) for problem, arguments, code in RECIPES),
        ("no replicates", ("recipe.yaml", "--out", "new"), 2),
    ],
    "status": [("no run", ("none",), 2), ("a folder of runs", ("runs",), 2)],
    "cancel": [("no run", ("none",), 2), ("no jobs", ("runs/a",), 2), ("a folder of runs", ("runs",), 2)],
    "sweep": [
        ("no axis", ("recipe.yaml", "--out", "new"), 2),
        ("a wrong key", ("recipe.yaml", "--over", "train.epoch=2,3", "--out", "new"), 2),
        ("a value that is none", ("recipe.yaml", "--over", "tuning.rank=2,x", "--out", "new"), 2),
        ("no such model", ("recipe.yaml", "--models", "wrong,none/here", "--out", "new"), 2),
        ("no such recipe", ("none.yaml", "--over", "seed=1,2", "--out", "new"), 2),
        ("no rows", ("wrong/data.yaml", "--over", "seed=1,2", "--out", "new"), 3),
        ("no such metric", ("recipe.yaml", "--over", "seed=1,2", "--out", "new", "evaluate.metrics=[gone:here]",
                            "evaluate.primary=gone:here"), 2),
        ("a threshold out of range", ("recipe.yaml", "--over", "seed=1,2", "--threshold", "60", "--out", "new"), 2),
        ("a folder of other things", ("recipe.yaml", "--over", "seed=1,2", "--out", "wrong"), 2),
        ("a file as its folder", ("recipe.yaml", "--over", "seed=1,2", "--out", "rows.jsonl"), 2),
        ("a folder below a file", ("recipe.yaml", "--over", "seed=1,2", "--out", "rows.jsonl/new"), 2),
        ("a trial of no sweep", ("runs/a", "--trial", "1"), 2),
        ("no Slurm", ("recipe.yaml", "--over", "seed=1,2", "--out", "new", *SLURM), 2),
        ("a threshold for a plan", ("recipe.yaml", "--over", "seed=1,2", "--plan", "--threshold", "0.5"), 2),
    ],
    "compare": [
        ("no run", ("none",), 2),
        ("no run to write of", ("none", "--html"), 2),
        ("a folder of runs", ("runs", "--html"), 2),
        ("not evaluated", ("runs/prepared",), 2),
        ("a folder where the report goes", ("runs/prepared", "--html"), 2),
        ("a damaged run", ("runs/damaged",), 6),
    ],
    "promote": [
        ("no run", ("none",), 2),
        ("not evaluated", ("runs/prepared",), 2),
        ("a damaged run", ("runs/damaged",), 6),
        ("a verdict against it", ("runs/worse",), 4),
        ("forced without a reason", ("runs/worse", "--force"), 2),
        ("an alias for a run", ("runs/a", "--alias", "live"), 2),
        ("a version", ("loop@1",), 2),
    ],
    "alias": [
        ("no alias", ("loop@1",), 2),
        ("no such version", ("loop@9", "live"), 2),
        ("no such model", ("none@1", "live"), 2),
        ("a name that is none", ("loop@1", "../live"), 2),
    ],
    "rollback": [
        ("no such model", ("none",), 2),
        ("no such alias", ("loop@live",), 2),
        ("nothing before it", ("loop@staging",), 1),
    ],
    "models": [("no such model", ("none",), 2), ("a name that is none", ("../loop",), 2)],
    "export": [
        ("no such model", ("none", "--to", "merged", "--out", "new"), 2),
        ("no such alias", ("loop@live", "--to", "adapter", "--out", "new"), 2),
        ("no such format", ("loop@1", "--to", "onnx", "--out", "new"), 2),
        ("no such type", ("loop@1", "--to", "merged", "--type", "q3", "--out", "new"), 2),
        ("no such reader", ("loop@1", "--to", "adapter", "--readers", "ollama", "--out", "new"), 2),
        ("an option of another format", ("loop@1", "--to", "merged", "--readers", "peft", "--out", "new"), 2),
        ("a full model as an adapter", ("base", "--to", "adapter", "--out", "new"), 2),
        ("out exists", ("loop@1", "--to", "merged", "--out", "wrong"), 2),
        ("out is below a file", ("loop@1", "--to", "merged", "--out", "rows.jsonl/new"), 2),
        ("forced without a reason", ("loop@1", "--to", "merged", "--out", "new", "--force"), 2),
        ("a damaged run", ("runs/damaged", "--to", "merged", "--out", "new"), 6),
    ],
    "prove": [
        ("no such model", ("http://127.0.0.1:9", "none"), 2),
        ("no server", ("http://127.0.0.1:9", "loop@1"), 2),
        ("a model instead of a URL", ("loop@1", "http://127.0.0.1:9"), 2),
        ("no such type", ("http://127.0.0.1:9", "loop@1", "--type", "q99"), 2),
        ("a negative number of rows", ("http://127.0.0.1:9", "loop@1", "--rows", "-1"), 2),
        ("a damaged run", ("http://127.0.0.1:9", "runs/damaged"), 6),
    ],
    "score": [
        ("no such file", ("none.jsonl",), 3),
        ("other rows", (SCORES,), 3),
        ("no such metric", (ANSWERS, "--metrics", "none"), 2),
        ("a metric of one's own that is none", (ANSWERS, "--metrics", "gone:here"), 2),
        ("no such database", (ANSWERS, "--metrics", "execution", "--database", "none.sqlite"), 3),
    ],
    "verdict": [
        ("no such file", (SCORES, "none.jsonl"), 3),
        ("other rows", (SCORES, "rows.jsonl"), 3),
        ("no such metric", (SCORES, SCORES, "--metric", "none"), 3),
    ],
    "generate": [
        ("no such model", ("none", *HI), 2),
        ("no such alias", ("loop@live", *HI), 2),
        ("no prompt", ("loop@staging",), 2),
        ("no such column", ("loop@staging", "--row", "x=1"), 2),
        ("no such file", ("loop@staging", "--file", "none.jsonl"), 3),
        ("two questions", ("loop@staging", *HI, "--file", "rows.jsonl"), 2),
        ("a damaged run", ("runs/damaged", *HI), 6),
    ],
    "chat": [
        ("no such model", ("none",), 2),
        ("no such alias", ("loop@live",), 2),
        ("no such column", ("loop@staging", "--row", "x=1"), 2),
    ],
    "serve": [
        ("no model", (), 2),
        ("no such model", ("none", "--port", "0"), 2),
        ("no such alias", ("loop@live", "--port", "0"), 2),
        ("two of one name", ("a=loop@staging", "a=loop@1", "--port", "0"), 2),
        ("another machine's host without a key", ("loop@staging", "--host", "0.0.0.0", "--port", "0"), 2),
        ("no such key", ("loop@staging", "--api-key-file", "none", "--port", "0"), 2),
        ("no such port", ("loop@staging", "--port", "70000"), 2),
        ("no such host", ("loop@staging", "--host", "no-such-host.invalid", "--port", "0"), 2),
        ("no memory", ("loop@staging", "--cache", "0", "--port", "0"), 2),
        ("no time", ("loop@staging", "--timeout", "0"), 2),
        ("vLLM is not installed", ("loop@1", "--engine", "vllm"), 2),
        (
            "another program on another machine's host without a key",
            ("loop@1", "--engine", "llama.cpp", "--host", "0.0.0.0", "--port", "0"),
            2,
        ),
        ("an option of the own server", ("loop@1", "--engine", "llama.cpp", "--base"), 2),
        ("two models in another program", ("loop@1", "base", "--engine", "llama.cpp"), 2),
        ("no such engine", ("loop@1", "--engine", "ollama"), 2),
        ("a type for the own server", ("loop@1", "--type", "q8_0"), 2),
        ("no such type", ("loop@1", "--engine", "llama.cpp", "--type", "q99", "--port", "0"), 2),
    ],
    "doctor": [("no such option", ("--frob",), 2)],
}  # fmt: skip

# Public functions, and methods, that write or could: a name, the call, the exit code.
CALLS: list[tuple[str, Callable[[], object], int]] = [
    ("export_model: out exists", lambda: export_model("loop@staging", "wrong", to="merged"), 2),
    ("export_model: out is a file", lambda: export_model("loop@staging", "rows.jsonl", to="merged"), 2),
    ("export_model: out is below a file", lambda: export_model("loop@staging", "rows.jsonl/new", to="merged"), 2),
    ("export_model: no such model", lambda: export_model("loop@live", "new", to="merged"), 2),
    ("export_model: an adapter of a whole model", lambda: export_model("base", "new", to="adapter"), 2),
    ("run_recipe: a wrong key", lambda: run_recipe("recipe.yaml", ["train.epoch=2"], out="new"), 2),
    ("run_recipe: no rows", lambda: run_recipe("wrong/data.yaml"), 3),
    ("run_sweep: one trial", lambda: run_sweep("recipe.yaml", over=["seed=1"], out="new"), 2),
    ("run_sweep: no rows", lambda: run_sweep("wrong/data.yaml", over=["seed=1,2"]), 3),
    ("plan_run: no base", lambda: plan_run("wrong/base.yaml"), 2),
    ("open_chatter: no such model", lambda: open_chatter("none@1"), 2),
    ("Registry.add: no folder", lambda: Registry.default().add("new", Path("none"), facts={}), 2),
    ("Registry.add: a bad name", lambda: Registry.default().add("../new", Path("wrong"), facts={}), 2),
    ("Registry.add: a link", lambda: Registry.default().add("new", Path(), facts={}), 2),
    ("Registry.move: no version", lambda: Registry.default().move("loop", "live", 9, verdict=None, reason=None), 2),
    ("Registry.delete: in use", lambda: Registry.default().delete("loop", 1), 2),
    ("Registry at no place", lambda: Registry("none").rollback("loop", "staging"), 2),
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, with prepared, damaged and worse runs, wrong recipes and a full model next to it."""
    folder = Path(copytree(finished, tmp_path_factory.mktemp("refused") / "project"))
    whole, damaged, worse = (folder / "runs" / name for name in ("a", "damaged", "worse"))
    copytree(whole, folder / "runs" / "prepared", ignore=ignore_patterns("train", "evaluate", "promote"))
    (folder / "runs/prepared/report.html").unlink()
    (folder / "runs/prepared/report.html").mkdir()
    copytree(whole, worse)
    verdict = json.loads((worse / "evaluate/verdict.json").read_text())
    verdict |= {"verdict": "not_better", "primary": {**verdict["primary"], "min_gain": 10.0}}
    (worse / "evaluate/verdict.json").write_text(json.dumps(verdict))
    copytree(whole, damaged)
    for file in ("prepare/tokens/train.safetensors", "prepare/examples/train.jsonl", "evaluate/verdict.json"):
        (damaged / file).write_bytes(b"{")
    for file in (damaged / "train/checkpoints").rglob("*.safetensors"):
        file.write_bytes(b"{")
    copytree(folder / "base", folder / "wrong" / "base")
    text = (folder / "recipe.yaml").read_text()
    (folder / "wrong/data.yaml").write_text(text)
    (folder / "wrong/base.yaml").write_text(text.replace("base: base", "base: none/here"))
    (folder / "link").symlink_to("nowhere")
    return folder


@pytest.fixture(autouse=True)
def _here(prepared: Path, tunesmith: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared)
    monkeypatch.setenv("TUNESMITH_REGISTRY", str(prepared / "registry"))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        pytest.param(command, arguments, code, id=f"{command}: {what}")
        for command, cases in REFUSED.items()
        for what, arguments, code in cases
    ],
)
def test_a_refused_command_changes_nothing(
    command: str, arguments: tuple[str, ...], code: int, tunesmith: Command
) -> None:
    before = state()
    done = tunesmith(command, *arguments)
    assert state() == before
    assert done.code == code, done.output


def test_every_command_has_refused_arguments() -> None:
    assert {name for name in app if not name.startswith("-")} == set(REFUSED)


@pytest.mark.parametrize(("call", "code"), [pytest.param(call, code, id=what) for what, call, code in CALLS])
def test_a_refused_call_changes_nothing(call: Callable[[], Any], code: int) -> None:
    before = state()
    with pytest.raises(TunesmithError) as caught:
        call()
    assert state() == before
    assert caught.value.exit_code == code, caught.value
