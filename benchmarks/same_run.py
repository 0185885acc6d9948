"""Compare the token files and the losses of two commits.

    .venv/bin/python -m benchmarks.same_run BEFORE [AFTER] [--only chat,demo]

BEFORE and AFTER are commits; AFTER defaults to the working tree. Both prepare and train each case with their command
line, in fp32 and one thread: a tiny random model for every task, the demo's recipe with a few steps, and the founding
jobs scaled down if the public data sets exist. Prints a Markdown table; exits with 1 if any byte of a token file or any
loss differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.tiny import recipe, save_model, save_plain_model, save_seq2seq, write_numbers

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
SPLIT = {"valid": 0.15, "test": 0.2}
ROWS = {"source": {"file": "rows.jsonl"}, "split": SPLIT}
FULL = {"tuning": {"method": "full"}}
FEW_STEPS = ("train.max_steps=4", "train.valid_every_steps=2", "train.examples_per_step=8")
FOUNDING = ("data.train_rows=24", "data.max_dropped_fraction=0.9", "data.max_tokens_per_example=512", "seed=1")


class Case(NamedTuple):
    """A recipe with overrides: a file that both commits can read, or a name in `recipes/` of each commit."""

    file: Path | str
    changes: tuple[str, ...]


def tiny_cases(folder: Path) -> dict[str, Case]:
    """Write a recipe and a tiny model for every task; return them by name."""
    llama, t5 = save_model(folder / "llama", "llama"), save_seq2seq(folder / "t5", vocab_size=96)
    text = {**ROWS, "task": "text", "text": "{question} {answer}", "max_tokens_per_example": 16, "too_long": "split"}
    pair = {**ROWS, "prompt": "{question}", "response": "{answer}"}
    numbers = {**pair, "source": {"file": "numbers.jsonl"}, "task": "seq2seq"}
    written: dict[str, tuple[Path, dict[str, Any]]] = {
        "text": (llama, {"data": text, **FULL}),
        "completion": (llama, {"data": {**pair, "task": "completion"}}),
        "chat": (llama, {}),
        "chat-full": (llama, FULL),
        "seq2seq": (t5, {"data": numbers, "tuning": {"method": "lora", "rank": 4, "alpha": 8, "target": ["q", "v"]}}),
        "seq2seq-full": (t5, {"data": numbers, **FULL}),
    }
    found = {}
    for name, (model, changes) in written.items():
        (folder / name).mkdir()
        write_numbers(folder / name / "numbers.jsonl", 80)
        found[name] = Case(recipe(folder / name, model, **changes), FEW_STEPS)
    return found


def recipe_cases(folder: Path) -> dict[str, Case]:
    """Return the recipes of the demo and, if their data exists, of the founding jobs, scaled down."""
    demo = ("data.source.rows=300", "train.max_steps=3", "train.valid_every_steps=3", "train.valid_loss_rows=8")
    found = {"demo": Case("demo", (*demo, "model.precision=fp32"))}
    if not DATA.exists():
        return found
    # The whole section, because the recipes of some commits have sources of their own for valid and test.
    viggo = (
        "data={source: {file: x}, split: {valid: 0.05, test: 0.1, by: mr}, task: chat, "
        'prompt: "Say this as one sentence.\\n{mr}", response: "{ref}"}',
    )
    dialogsum = (
        "data={source: {file: x}, split: {valid: 0.1, test: 0.05}, "
        'task: seq2seq, prompt: "Summarize the following conversation.\\n\\n{dialogue}\\n\\nSummary: ", '
        'response: "{summary}", max_target_tokens: 128, leakage: drop}',
    )
    gemma = ("data.split.valid=0.1", "data.split.test=0.2")
    jobs = {
        "viggo-pipeline": (save_model(folder / "viggo", "llama"), "viggo/viggo-train.csv", viggo),
        "dialogsum-flan-t5": (
            save_seq2seq(folder / "dialogsum", "flan-t5"), "dialogsum/dialogsum.dev.jsonl", dialogsum,
        ),
        "netflix-gpt-neo": (save_model(folder / "netflix", "gpt_neo"), "netflix/netflix_titles.csv", ()),
        "mistral-sql-qlora": (
            save_plain_model(folder / "mistral", "llama"), "spider/spider-create-context.train.jsonl", (),
        ),
        "gemma-chat-slurm": (
            save_plain_model(folder / "gemma", "gemma3_text"), "oasst1/oasst1-en.top1-chatml.jsonl", gemma,
        ),
    }  # fmt: skip
    for name, (model, file, changes) in jobs.items():
        source = (f"model.base={model}", f"data.source={{file: {DATA / file}}}")
        found[name] = Case(name, (*changes, *FEW_STEPS, *FOUNDING, *source))
    return found


def run(tree: Path, case: Case, out: Path) -> tuple[dict[str, str], list[Any]]:
    """Prepare and train a case with the code in `tree`; return the digests of its token files and its metrics."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    file = case.file if isinstance(case.file, Path) else tree / "recipes" / case.file / "recipe.yaml"
    for stage in ("prepare", "train"):
        options = ["--on", "local", "--out", str(out)]
        command = [sys.executable, "-m", "tunesmith", stage, str(file), *options, *case.changes]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{tree}: {stage} of {file} ended with {done.returncode}\n{done.stderr}")
    files = sorted((out / "prepare" / "tokens").iterdir())
    lines = map(json.loads, (out / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [
        [line["step"], line["loss"], line.get("gradient_norm"), line.get("token_accuracy")]
        for line in lines
        if line["kind"] in ("step", "valid")
    ]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}, steps


def tree_of(commit: str | None, folder: Path) -> Path:
    """Return the folder of a commit's code and recipes, unpacked in `folder`; the working tree for no commit."""
    if commit is None:
        return ROOT
    archive = subprocess.run(
        ["git", "archive", commit, "src", "recipes"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    ).stdout
    folder.mkdir()
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    return folder


def compare(trees: Sequence[Path], cases: dict[str, Case], folder: Path) -> bool:
    """Run all cases at both commits and print a line for each; return whether all agree."""
    print("| case | token files | steps and validations | losses, first and last | |\n|---|--:|--:|---|---|")
    same = True
    for name, case in cases.items():
        (files, steps), (other_files, other_steps) = (
            run(tree, case, folder / f"{name}-{number}") for number, tree in enumerate(trees)
        )
        differing = ["tokens"] * (files != other_files) + ["steps"] * (steps != other_steps)
        same &= not differing
        result = f"differ: {' and '.join(differing)}" if differing else "equal"
        print(f"| {name} | {len(files)} | {len(steps)} | {steps[0][1]!r} {steps[-1][1]!r} | {result} |", flush=True)
        for before, after in zip(steps, other_steps, strict=False):
            if before != after:
                print(f"    {before} became {after}")
    return same


def main() -> None:
    """Compare two commits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", help="a commit; the working tree if it is left out")
    parser.add_argument("--only", help="names of cases, separated by commas")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        trees = [tree_of(given.before, folder / "before"), tree_of(given.after, folder / "after")]
        cases = tiny_cases(folder) | recipe_cases(folder)
        if given.only:
            cases = {name: cases[name] for name in given.only.split(",")}
        if not compare(trees, cases, folder):
            sys.exit(1)


if __name__ == "__main__":
    main()
