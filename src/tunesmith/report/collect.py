"""Read a run folder into a `RunView`. Only the resolved recipe must exist; everything else may be missing.

Nothing is written. A report may be made during the run, so a last line that is only partly written is skipped.
"""

import json
import math
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tunesmith.core import stages
from tunesmith.core.errors import DamagedFile
from tunesmith.core.jsonl import whole_lines
from tunesmith.core.records import is_number
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Verdict
from tunesmith.core.verdict_reader import read_verdict
from tunesmith.report.answers import pair_answers
from tunesmith.report.view import Answers, RunView, StageState, StageStatus, Training

MAX_ROWS_LISTED = 6
# The statuses of rows in the ledger that were not kept whole.
UNUSED = ("dropped", "cut", "filtered", "unused")
VALID_KEYS = ("kind", "step", "loss", "token_accuracy", "tokens")  # other keys of a validation's line are metrics
MAX_GAP_SECONDS = 60.0  # between two samples of the machine; in a longer gap, training was not running


def collect(run: RunDir) -> RunView:
    """Read a run folder; files that are damaged are listed in `problems`."""
    files = _Files(run.path)
    resolved = files.text(run.resolved_recipe)
    settings = _settings(resolved)
    verdict = _verdict(files, run.verdict)
    return RunView(
        name=str(settings.get("name") or run.path.resolve().parent.name),
        run_id=run.path.resolve().name,
        recipe=files.text(run.recipe),
        resolved=resolved,
        settings=settings,
        environment=files.json(run.environment),
        stages=tuple(_stage(run, files, stage, settings) for stage in stages.STAGES),
        prepared=files.manifest(run, "prepare"),
        unused_rows=_unused_rows(run.ledger),
        samples=tuple(files.json(run.stage("prepare") / "samples.json") or ()),
        training=_training(run, files),
        verdict=verdict,
        answers=_answers(run, files, verdict),
        promotion=files.manifest(run, "promote"),
        problems=tuple(files.problems),
    )


class _Files:
    """Read the files of a run. A damaged file is added to `problems` and left out, so that the rest can be shown."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []

    def text(self, path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError:
            self.add_problem(path)
            return {}

    def manifest(self, run: RunDir, stage: str) -> dict[str, Any]:
        manifest = self.json(run.stage(stage) / "manifest.json")
        return manifest if isinstance(manifest, dict) else {}

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """Return the objects of a JSONL file, without a last line that is only partly written."""
        values = []
        for line in whole_lines(path):
            try:
                values.append(json.loads(line))
            except ValueError:
                self.add_problem(path)
        return [value for value in values if isinstance(value, dict)]

    def add_problem(self, path: Path) -> None:
        problem = f"{path.relative_to(self.root).as_posix()} is damaged; its content is missing here"
        if problem not in self.problems:
            self.problems.append(problem)


def _settings(resolved: str) -> dict[str, Any]:
    try:
        loaded = YAML(typ="safe", pure=True).load(resolved)
    except YAMLError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _stage(run: RunDir, files: _Files, stage: stages.Stage, settings: dict[str, Any]) -> StageStatus:
    manifest = files.manifest(run, stage.name)
    state: StageState = "missing"
    if manifest:
        state = "done"
    elif settings and stage.is_optional and not settings.get(stage.name):
        state = "not requested"
    elif run.stage(stage.name).exists():
        state = "unfinished"
    return StageStatus(stage.name, state, manifest.get("seconds"))


def _unused_rows(ledger: Path) -> dict[tuple[str, str], list[int]]:
    """Return {(status, reason): the first row numbers} of rows that were not used, or were cut."""
    unused: dict[tuple[str, str], list[int]] = {}
    for line in whole_lines(ledger):
        if not any(f'"{status}"' in line for status in UNUSED):  # most rows are kept, and parsing them is slow
            continue
        try:
            entry = json.loads(line)
            key = (str(entry["status"]), str(entry["reason"]))
        except (ValueError, KeyError):
            continue
        if key[0] in UNUSED:
            rows, number = unused.setdefault(key, []), entry.get("row", 0)
            if len(rows) < MAX_ROWS_LISTED and number not in rows:  # a document may have several blocks
                rows.append(number)
    return unused


def _training(run: RunDir, files: _Files) -> Training | None:
    lines = files.lines(run.metrics)
    facts = files.manifest(run, "train")
    if not lines and not facts:
        return None
    steps = {
        line["step"]: (line["step"], line["loss"], line.get("learning_rate") or 0.0)
        for line in lines
        if line.get("kind") == "step" and is_number(line.get("loss"))
    }
    valid = {
        line["step"]: (line["step"], line["loss"], line.get("token_accuracy"))
        for line in lines
        if line.get("kind") == "valid" and is_number(line.get("loss"))
    }  # a resumed run may have written a step twice; the later line counts
    by_step = tuple(sorted(valid.values(), key=lambda point: point[0]))
    return Training(tuple(sorted(steps.values())), by_step, _score_curves(lines), facts, _machine_curves(lines))


def _score_curves(lines: list[dict[str, Any]]) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return {metric: [(step, mean score of the answers to valid rows)]}; the last line of a step counts."""
    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, mean in line.items() if line.get("kind") == "valid" else ():
            if name not in VALID_KEYS and is_number(mean):
                curves.setdefault(name, {})[line["step"]] = float(mean)
    return {name: tuple(sorted(means.items())) for name, means in curves.items()}


def _machine_curves(lines: list[dict[str, Any]]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return {measure: (seconds of training, value)} of memory and utilization, without pauses between sessions."""
    curves: dict[str, list[tuple[float, float]]] = {}
    elapsed, previous = 0.0, math.inf
    for line in lines:
        if line.get("kind") != "machine" or not is_number(line.get("time")):
            continue
        gap = line["time"] - previous
        elapsed += gap if 0 < gap < MAX_GAP_SECONDS else 0.0
        previous = line["time"]
        for name, number in line.items():
            if name not in ("kind", "step", "time") and is_number(number):
                curves.setdefault(name, []).append((elapsed, float(number)))
    return {name: tuple(points) for name, points in curves.items()}


def _verdict(files: _Files, path: Path) -> Verdict | None:
    try:
        return read_verdict(path) if path.exists() else None
    except DamagedFile:
        files.add_problem(path)
        return None


def _answers(run: RunDir, files: _Files, verdict: Verdict | None) -> Answers | None:
    generations = {name: files.lines(run.evaluation(name) / "generations.jsonl") for name in ("base", "tuned")}
    scores = {name: files.lines(run.evaluation(name) / "scores.jsonl") for name in ("base", "tuned")}
    if not any(generations.values()):
        return None
    primary = verdict.primary if verdict else None
    return pair_answers(generations, scores, primary)
