"""The wording of each surface, held by one golden file per surface; other tests assert values.

`TUNESMITH_WRITE_GOLDEN=1 .venv/bin/python -m pytest -n0 -m "" tests/golden` rewrites the files; read the difference
before a commit. Paths, times, speeds, memory and losses depend on the machine and are masked.
"""

import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.support.tiny import recipe, save_model, write_rows
from tests.unit.report.conftest import build_run
from tests.unit.sweep.conftest import binary, finish

from tunesmith.report.render import write_report
from tunesmith.sweep.axes import list_trials, write_sweep
from tunesmith.sweep.collect import collect
from tunesmith.sweep.text import as_text

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "recipes" / "demo" / "recipe.yaml"
SCALED = (
    "model.base=base", "data.source.rows=200", "train.max_steps=3", "train.valid_every_steps=3", "evaluate.rows=20",
    "evaluate.max_new_tokens=8",
)  # fmt: skip
MASKS = (
    (r"\b[0-9a-f]{8}\b", "DIGEST"),
    (r"(\d+h )?(\d+m )?(?<![\w.])\d+(\.\d+)?s\b", "TIME"),
    (r"[\d.,]+ tokens/s", "N tokens/s"),
    (r"[\d.,]+ GiB( of [\d.,]+)?", "N GiB"),
    (r"(weights|gradients|optimizer|activations|logits|fragmentation|libraries) [\d.]+", r"\1 N"),
    (r"loss \d+\.\d+", "loss N"),
    (r"token accuracy [\d.]+ ?%", "token accuracy N %"),
)
# Progress lines before the last one; how many there are depends on the speed.
UNFINISHED = re.compile(r"(?m)^.* (\d+)/(?!\1\b)\d+ (?:steps|rows).*\n")


class VisibleText(HTMLParser):
    """The words of a page as a reader sees them: a line for each block, row of a table and label of a wide chart."""

    INLINE = ("span", "b", "small", "mark", "del", "code", "strong", "em", "a")
    CELLS = ("td", "th", "dd")
    VOID = ("meta", "input", "line", "rect", "circle", "polyline")  # without an end tag, or never around text

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.hidden: list[str] = []  # open elements, from the outermost invisible one on
        self.feed(page)
        self.close()

    @property
    def lines(self) -> str:
        """The lines that are not empty, with single spaces."""
        lines = (" ".join(line.split()).removeprefix("| ") for line in self.text.split("\n"))
        return "\n".join(line for line in lines if line.strip("|")) + "\n"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a line or a cell; leave out scripts and the narrow version of a chart."""
        if self.hidden or tag in ("style", "script", "template") or ("class", "narrow") in attrs:
            self.hidden += [tag] if tag not in self.VOID else []
        self.text += " " if tag in self.INLINE else " | " if tag in self.CELLS else "\n"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Pass over elements without content, such as lines of a chart."""

    def handle_endtag(self, tag: str) -> None:
        """End a line, unless the element is inline or a cell."""
        if self.hidden and tag == self.hidden[-1]:
            self.hidden.pop()
        self.text += "" if tag in (*self.INLINE, *self.CELLS) else "\n"

    def handle_data(self, data: str) -> None:
        """Collect visible text; line breaks of the source are spaces."""
        self.text += "" if self.hidden else data.replace("\n", " ")


def command(folder: Path, *arguments: object) -> str:
    """Run tunesmith in a folder; return what it prints to both streams, errors first, and its exit code."""
    environment = os.environ | {"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1", "TUNESMITH_CACHE": "cache"}
    environment |= {"TUNESMITH_REGISTRY": "registry", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    lines = [line.rstrip() for line in f"{done.stderr}{done.stdout}".split("\n")]
    return "\n".join([*lines[:-1], *filter(None, lines[-1:]), f"exit code {done.returncode}\n"])


def mask(text: str) -> str:
    """Replace values that depend on the machine."""
    text = UNFINISHED.sub("", text)
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text)
    return text


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model `base`, whose positions suffice for the rows of the demo."""
    folder = tmp_path_factory.mktemp("golden")
    config = save_model(folder / "base", "llama") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    return folder


def render_help(base: Path, _: Path) -> str:
    return command(base, "--help")


def render_plan(base: Path, _: Path) -> str:
    return mask(command(base, "plan", DEMO, *SCALED))


def render_run(base: Path, _: Path) -> str:
    """Run the demo scaled down. Its random base answers nothing right, so every number of the verdict is known."""
    return mask(command(base, "run", DEMO, *SCALED, "--out", "run"))


def render_status(base: Path, _: Path) -> str:
    """Show the run of `render_run`, which is made if only this test is selected."""
    if not (base / "run").exists():
        render_run(base, base)
    return mask(command(base, "status", "run"))


def render_compare(_: Path, folder: Path) -> str:
    return command(folder, "compare", build_run(folder, rows=12).path.relative_to(folder), "--rows", 3)


def render_report(_: Path, folder: Path) -> str:
    page = write_report(build_run(folder, rows=8)).read_text(encoding="utf-8")
    return VisibleText(page).lines


def render_sweep(base: Path, folder: Path) -> str:
    metrics = {"metrics": ["exact_match"], "primary": "exact_match"}
    file = recipe(folder, base / "base", evaluate=metrics, promote={"model": "m", "min_gain": 0.1})
    sweep = list_trials(file, over=["tuning.rank=2,8,32"], overrides=(), out=folder / "sweep")
    write_sweep(sweep, file)
    for trial, right in zip(sweep.trials, (14, 60, 75), strict=True):
        finish(sweep, trial, binary(10), binary(right))
    return as_text(collect(sweep)).rstrip("\n") + "\n"


def render_init(base: Path, folder: Path) -> str:
    """Write a recipe for rows of pairs with a shared identifier and a file of validation rows beside them."""
    write_rows(folder / "train.jsonl", 240)
    write_rows(folder / "valid.jsonl", 40)
    said = command(folder, "init", "--from", "train.jsonl", "--model", base / "base", "--out", "my.yaml")
    return said + (folder / "my.yaml").read_text(encoding="utf-8")


def render_recipe_error(base: Path, _: Path) -> str:
    return command(base, "plan", DEMO, "train.epochz=3")


def render_data_error(base: Path, folder: Path) -> str:
    data = {"task": "chat", "source": {"file": "rows.jsonl"}, "prompt": "{question}", "response": "{answer}"}
    file = recipe(folder, base / "base", data=data)
    rows = folder / "rows.jsonl"  # `recipe` wrote it
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    rows.write_text("".join([*lines[:2], lines[2].replace("}", ""), *lines[3:]]), encoding="utf-8")
    return command(folder, "plan", file)


SURFACES: dict[str, Callable[[Path, Path], str]] = {
    "help": render_help,
    "init": render_init,
    "recipe_error": render_recipe_error,
    "data_error": render_data_error,
    "compare": render_compare,
    "report": render_report,
    "sweep": render_sweep,
    "plan": render_plan,
    "run": render_run,
    "status": render_status,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SURFACES)
def test_text_is_that_of_its_golden_file(name: str, base: Path, tmp_path: Path) -> None:
    text = SURFACES[name](base, tmp_path)
    for folder, place in ((tmp_path, "FOLDER"), (base, "FOLDER"), (DEMO.parents[2], "PROJECT")):
        text = text.replace(str(folder), place)
    golden = HERE / f"{name}.txt"
    if os.environ.get("TUNESMITH_WRITE_GOLDEN") == "1":
        golden.write_text(text, encoding="utf-8")
    expected = golden.read_text(encoding="utf-8")
    changes = "\n".join(difflib.unified_diff(expected.splitlines(), text.splitlines(), golden.name, "now", lineterm=""))
    assert text == expected, f"{changes}\n\nif this is intended: TUNESMITH_WRITE_GOLDEN=1 pytest -n0 -m '' tests/golden"
