"""Read a run folder into a `RunView`. Only the resolved recipe must exist; everything else may be missing.

Nothing is written. A report may be made during the run, so a last line that is only partly written is skipped.
"""

import json
import math
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tunesmith.core import stages
from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import MANIFEST, read_json
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
    files = _Files(run)
    resolved = files.text(run.resolved_recipe)
    settings = _settings(resolved)
    verdict: Verdict | None = files.read(run.verdict, read_verdict)
    return RunView(
        name=str(settings.get("name") or run.path.resolve().parent.name),
        run_id=run.path.resolve().name,
        recipe=files.text(run.recipe),
        resolved=resolved,
        settings=settings,
        environment=files.read(run.environment) or {},
        stages=tuple(_stage(files, stage, settings) for stage in stages.STAGES if _is_shown(stage, settings)),
        prepared=files.manifest("prepare"),
        unused_rows=_unused_rows(run.ledger),
        samples=tuple(files.read(run.stage("prepare") / "samples.json") or ()),
        training=_training(files),
        verdict=verdict,
        answers=_answers(files, verdict),
        incumbents={
            path.stem: compared
            for path in run.incumbent_verdicts
            if (compared := files.read(path, read_verdict)) is not None
        },
        promotion=files.manifest("promote"),
        exports=tuple(entry for entry in files.manifest("export").get("exports") or () if isinstance(entry, dict)),
        problems=tuple(files.problems),
    )


class _Files:
    """Read the files of a run. A damaged file is added to `problems` and left out, so that the rest can be shown."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.problems: list[str] = []

    def text(self, path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def read(self, path: Path, reader: Callable[[Path], Any] = read_json) -> Any:
        """Return the content of a file; None if it is missing or damaged."""
        try:
            return reader(path) if path.exists() else None
        except DamagedFile:
            self.add_problem(path)
            return None

    def manifest(self, stage: str) -> dict[str, Any]:
        manifest = self.read(self.run.stage(stage) / MANIFEST)
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
        problem = f"{path.relative_to(self.run.path).as_posix()} is damaged; its content is missing here"
        if problem not in self.problems:
            self.problems.append(problem)


def _settings(resolved: str) -> dict[str, Any]:
    try:
        loaded = YAML(typ="safe", pure=True).load(resolved)
    except YAMLError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _is_shown(stage: stages.Stage, settings: dict[str, Any]) -> bool:
    """Return whether a report lists a stage: those that few recipes ask for are mentioned in no other report."""
    return not stage.is_rare or bool(settings.get(stage.key))


def _stage(files: _Files, stage: stages.Stage, settings: dict[str, Any]) -> StageStatus:
    manifest = files.manifest(stage.name)
    state: StageState = "missing"
    if manifest:
        state = "done"
    elif settings and stage.key and not settings.get(stage.key):
        state = "not requested"
    elif files.run.stage(stage.name).exists():
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


def _training(files: _Files) -> Training:
    lines = files.lines(files.run.metrics)
    measured: dict[str, dict[int, dict[str, Any]]] = {"step": {}, "valid": {}}
    for line in lines:  # a resumed run may have written a step twice; the later line counts
        if line.get("kind") in measured and is_number(line.get("loss")):
            measured[line["kind"]][line["step"]] = line
    steps, valid = (sorted(by_step.items(), key=itemgetter(0)) for by_step in measured.values())
    return Training(
        tuple((step, line["loss"], line.get("learning_rate") or 0.0) for step, line in steps),
        tuple((step, line["loss"], line.get("token_accuracy")) for step, line in valid),
        _score_curves(lines),
        files.manifest("train"),
        _machine_curves(lines),
    )


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


def _answers(files: _Files, verdict: Verdict | None) -> Answers | None:
    generations, scores = (
        {name: files.lines(files.run.evaluation(name) / file) for name in ("base", "tuned")}
        for file in ("generations.jsonl", "scores.jsonl")
    )
    if not any(generations.values()):
        return None
    return pair_answers(generations, scores, verdict.primary if verdict else None)
