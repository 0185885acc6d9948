"""Start the process of lm-evaluation-harness, and check the tasks of `evaluate.lm_eval` in it. Needs no torch."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError, TunesmithError, install_hint
from tunesmith.core.files import digest_file, read_json, write_json, write_text
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.guards import HarnessTask
from tunesmith.recipe.schema import Recipe

_WORKER = "tunesmith.evaluate.harness_worker"
_POLL_SECONDS = 0.2
_LOG, _LOG_LINES = "lm_eval.log", 3
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Found = Mapping[str, Mapping[str, Any]]
"""The answer of the worker, by the name of the task in the verdict."""


def check_tasks(recipe: Recipe, run: RunDir) -> None:
    """Check that the package, the tasks and their data are there. Takes seconds, because the data is read.

    Raises:
        RecipeError: the package is not installed, a task or its data is missing, or it lacks the guarded metric.
        TunesmithError: the harness failed.
    """
    if not recipe.evaluate.lm_eval:
        return
    if importlib.util.find_spec("lm_eval") is None:
        hint = f"{install_hint('lm-eval')}; or remove the key"
        message = "needs the package lm_eval (lm-evaluation-harness), which is not installed"
        raise RecipeError(message, where="evaluate.lm_eval", hint=hint, code="missing-package")
    ask_harness(recipe, run)


def task_inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Return the digests of the files in the tasks' folders; other files that their definitions name are not seen."""
    folders = {entry.folder: run.recipe_folder / entry.folder for entry in recipe.evaluate.lm_eval if entry.folder}
    files = {
        name: {path.relative_to(folder).as_posix(): digest_file(path) for path in sorted(folder.rglob("*.*"))}
        for name, folder in folders.items()
        if folder.is_dir()
    }
    return {"lm_eval": files} if files else {}


def ask_harness(recipe: Recipe, run: RunDir, *, with_models: bool = False) -> Found:
    """Check the tasks of a recipe in the harness's process and, `with_models`, run base and tuned on them.

    Raises:
        RecipeError: a task cannot be run.
        TunesmithError: the harness failed; the message has the end of its log, which is kept in the run if it exists.
    """
    entries = recipe.evaluate.lm_eval
    request: dict[str, Any] = {"tasks": [_as_request(entry, run.recipe_folder) for entry in entries]}
    if with_models:
        request |= {"recipe": recipe.model_dump(mode="json"), "run": os.path.abspath(run.path)}
    with tempfile.TemporaryDirectory() as folder:
        out, asked, log_path = (Path(folder) / name for name in ("answer.json", "request.json", "log.txt"))
        write_json(asked, {**request, "out": str(out)})
        code = _run_worker(asked, log_path, run.recipe_folder)
        found: Found | None = read_json(out) if out.exists() else None
        text = log_path.read_text(encoding="utf-8", errors="replace")
    if code or found is None:
        end = " | ".join(text.strip().splitlines()[-_LOG_LINES:])
        message = f"lm-evaluation-harness ended with exit code {code}: {end}"
        hint = "see the messages of the harness"
        if run.path.is_dir():
            write_text(run.path / _LOG, text)
            hint = f"see {run.path / _LOG}"
        raise TunesmithError(message, where="evaluate.lm_eval", hint=hint, code="lm-eval-failed")
    for index, entry in enumerate(entries):
        facts = found[entry.set_name]
        if "error" in facts:
            where = f"evaluate.lm_eval.{index}"
            raise RecipeError(facts["error"], where=where, hint=facts["hint"], code="lm-eval-task")
    return found


def _run_worker(request: Path, log_path: Path, folder: Path) -> int:
    """Run the worker in `folder`, where relative paths of tasks start, and return its exit code."""
    environment = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    # -P: no module next to the recipe takes the place of an installed one.
    command = [sys.executable, "-P", "-m", _WORKER, str(request)]
    with (
        log_path.open("w", encoding="utf-8") as log_file,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=subprocess.STDOUT, env=environment, cwd=folder,
            process_group=0,
        ) as process,
    ):  # fmt: skip
        try:
            while process.poll() is None:
                interrupt.check()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
        finally:
            process.kill()
    return process.returncode


def _as_request(entry: HarnessTask, recipe_folder: Path) -> dict[str, Any]:
    """Return a task for the worker, with the absolute path of its folder."""
    return {
        "set_name": entry.set_name, "task": entry.task, "metric": entry.metric, "rows": entry.rows,
        "fewshot": entry.fewshot, "chat_template": entry.chat_template,
        "folder": str((recipe_folder / entry.folder).resolve()) if entry.folder else None,
    }  # fmt: skip
