"""A run folder becomes a `View`. Only the resolved recipe must exist; whatever else is missing is left empty.

Nothing here writes: a report may be made while the run is still going, so half-written last lines are passed over.
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
from tunesmith.report.view import Answers, Stage, StageState, Training, View

LOST_ROWS_LISTED = 6
# What a row of the ledger may be beside kept whole.
LOST = ("dropped", "cut", "filtered", "unused")
VALID_FACTS = ("kind", "step", "loss", "token_accuracy", "tokens")  # of a validation's line; the rest are metrics
LONGEST_GAP = 60.0  # seconds between two samples of the machine's use; beyond it training was not running


def collect(run: RunDir) -> View:
    """Read everything a report shows from a run folder."""
    files = _Files(run.path)
    resolved = files.text(run.resolved_recipe)
    settings = _settings(resolved)
    verdict = _verdict(files, run.verdict)
    return View(
        name=str(settings.get("name") or run.path.resolve().parent.name),
        run_id=run.path.resolve().name,
        recipe=files.text(run.recipe),
        resolved=resolved,
        settings=settings,
        environment=files.json(run.environment),
        stages=tuple(_stage(run, files, stage, settings) for stage in stages.STAGES),
        prepared=files.manifest(run, "prepare"),
        lost_rows=_lost_rows(run.ledger),
        samples=tuple(files.json(run.stage("prepare") / "samples.json") or ()),
        training=_training(run, files),
        verdict=verdict,
        answers=_answers(run, files, verdict),
        promotion=files.manifest(run, "promote"),
        problems=tuple(files.problems),
    )


class _Files:
    """Reads a run's files; one that is damaged is named in `problems` and left out, so the rest can be shown."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []

    def text(self, path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError:
            self.note(path)
            return {}

    def manifest(self, run: RunDir, stage: str) -> dict[str, Any]:
        found = self.json(run.stage(stage) / "manifest.json")
        return found if isinstance(found, dict) else {}

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """Return the whole lines of a JSONL file; a last line still being written is passed over."""
        found = []
        for line in whole_lines(path):
            try:
                found.append(json.loads(line))
            except ValueError:
                self.note(path)
        return [item for item in found if isinstance(item, dict)]

    def note(self, path: Path) -> None:
        """Remember that a file is damaged."""
        problem = f"{path.relative_to(self.root).as_posix()} is damaged; what could not be read is left out"
        if problem not in self.problems:
            self.problems.append(problem)


def _settings(resolved: str) -> dict[str, Any]:
    try:
        loaded = YAML(typ="safe", pure=True).load(resolved)
    except YAMLError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _stage(run: RunDir, files: _Files, stage: stages.Stage, settings: dict[str, Any]) -> Stage:
    manifest = files.manifest(run, stage.name)
    state: StageState = "missing"
    if manifest:
        state = "done"
    elif settings and stage.is_optional and not settings.get(stage.name):
        state = "not asked for"
    elif run.stage(stage.name).exists():
        state = "unfinished"
    return Stage(stage.name, state, manifest.get("seconds"))


def _lost_rows(ledger: Path) -> dict[tuple[str, str], list[int]]:
    """Return {(status, reason): the first row numbers} of rows that were not used, or cut."""
    lost: dict[tuple[str, str], list[int]] = {}
    for line in whole_lines(ledger):
        if not any(f'"{status}"' in line for status in LOST):  # most rows are kept; parsing them all would be the cost
            continue
        try:
            entry = json.loads(line)
            key = (str(entry["status"]), str(entry["reason"]))
        except (ValueError, KeyError):
            continue
        if key[0] in LOST:
            rows, number = lost.setdefault(key, []), entry.get("row", 0)
            if len(rows) < LOST_ROWS_LISTED and number not in rows:  # a document may have several blocks
                rows.append(number)
    return lost


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
    in_order = tuple(sorted(valid.values(), key=lambda item: item[0]))
    return Training(tuple(sorted(steps.values())), in_order, _scores(lines), facts, _machine(lines))


def _scores(lines: list[dict[str, Any]]) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return the curves of what answers to valid rows scored; of a step written twice the later line counts."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, mean in line.items() if line.get("kind") == "valid" else ():
            if name not in VALID_FACTS and is_number(mean):
                found.setdefault(name, {})[line["step"]] = float(mean)
    return {name: tuple(sorted(means.items())) for name, means in found.items()}


def _machine(lines: list[dict[str, Any]]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return the curves of the machine's use, over seconds of training."""
    curves: dict[str, list[tuple[float, float]]] = {}
    elapsed, before = 0.0, math.inf
    for line in lines:
        if line.get("kind") != "machine" or not is_number(line.get("time")):
            continue
        gap = line["time"] - before
        elapsed += gap if 0 < gap < LONGEST_GAP else 0.0
        before = line["time"]
        for name, number in line.items():
            if name not in ("kind", "step", "time") and is_number(number):
                curves.setdefault(name, []).append((elapsed, float(number)))
    return {name: tuple(points) for name, points in curves.items()}


def _verdict(files: _Files, path: Path) -> Verdict | None:
    try:
        return read_verdict(path) if path.exists() else None
    except DamagedFile:
        files.note(path)
        return None


def _answers(run: RunDir, files: _Files, verdict: Verdict | None) -> Answers | None:
    generations = {name: files.lines(run.evaluation(name) / "generations.jsonl") for name in ("base", "tuned")}
    scores = {name: files.lines(run.evaluation(name) / "scores.jsonl") for name in ("base", "tuned")}
    if not any(generations.values()):
        return None
    primary = verdict.primary if verdict else None
    return pair_answers(generations, scores, primary)
