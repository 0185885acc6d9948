"""Run the trials of a sweep one after another, each as an ordinary run in its own process.

Peak memory can only be measured per process, and a trial that is killed for its memory must not end the sweep.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.core import interrupt
from tunesmith.core.errors import Interrupted, RecipeError, TunesmithError
from tunesmith.core.files import write_json
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.pipeline.runner import run_recipe
from tunesmith.sweep.axes import Sweep, Trial, check_sweep, is_sweep, list_trials, read_sweep, write_sweep
from tunesmith.sweep.collect import SweepResult, check_threshold, collect, failure_of, failure_path
from tunesmith.sweep.page import write_result
from tunesmith.sweep.reuse import reuse

_POLL_SECONDS = 0.2


def run_sweep(
    recipe: Path | str,
    *,
    over: Sequence[str] = (),
    models: Sequence[str] = (),
    overrides: Sequence[str] = (),
    out: Path | str | None = None,
    threshold: float | None = None,
) -> SweepResult:
    """Run all trials of a sweep and find the smallest that clears the threshold.

    Finished trials are skipped, an interrupted one is resumed, and failed ones are tried again. None is promoted.

    Args:
        recipe: the recipe's file, or the folder of a sweep to resume.
        over: axes, each `key=value,value,...`.
        models: values of `model.base`; they come before the other axes.
        overrides: `key=value` changes for all trials.
        out: the sweep's folder; default `runs/NAME/sweep-ID`.
        threshold: score that a trial must exceed; default: its gain must exceed `promote.min_gain`.

    Raises:
        RecipeError: a trial's recipe is invalid; nothing was written.
        DataError: the rows of a trial do not exist; nothing was written.
        Interrupted: on a signal; the same call resumes the sweep.
    """
    recipe = Path(recipe)
    sweep = open_sweep(recipe, over=over, models=models, overrides=overrides, out=Path(out) if out else None)
    is_written = is_sweep(recipe)
    check_threshold(sweep.recipe(sweep.trials[0]) if is_written else check_sweep(sweep, recipe)[0].recipe, threshold)
    with exclusive_lock(sweep.lock), interrupt.catch_signals():
        if not is_written:
            write_sweep(sweep, recipe)
        for trial in sweep.trials:
            interrupt.check()
            log(f"trial {trial.number} of {len(sweep.trials)}: {trial.label}")
            _run_in_subprocess(sweep, trial)
            result = write_result(collect(sweep, threshold))  # after each trial, so that results can be read early
    return result


def collect_sweep(sweep: Sweep, threshold: float | None) -> SweepResult:
    """Collect and write the results of finished trials without running any."""
    check_threshold(sweep.recipe(sweep.trials[0]), threshold)
    with exclusive_lock(sweep.lock):
        return write_result(collect(sweep, threshold))


def open_sweep(
    recipe: Path, *, over: Sequence[str], models: Sequence[str], overrides: Sequence[str], out: Path | None
) -> Sweep:
    """Return the sweep of a recipe and its axes, or of a sweep's folder."""
    if not is_sweep(recipe):
        return list_trials(recipe, over=over, models=models, overrides=overrides, out=out)
    if over or models or overrides or out:
        message = "is a sweep already, on which axes, changes and --out have no effect"
        hint = "leave them out, or pass the recipe's file to start another sweep"
        raise RecipeError(message, where=str(recipe), hint=hint, code="usage")
    return read_sweep(recipe)


def run_trial(folder: Path | str, number: int) -> RunDir:
    """Run one trial of a sweep in this process, as the tasks of a job array do.

    Raises:
        TunesmithError: the trial failed; the reason is also written for `collect`.
    """
    sweep = read_sweep(Path(folder))
    if not 1 <= number <= len(sweep.trials):
        hint = f"it has 1 to {len(sweep.trials)}"
        raise RecipeError(f"has no trial {number}", where=str(folder), hint=hint, code="no-such-trial")
    trial = sweep.trials[number - 1]
    run = sweep.run(trial)
    failure_path(run).unlink(missing_ok=True)
    try:
        with interrupt.catch_signals():
            reuse(sweep, trial)
            return run_recipe(run.path, until="evaluate")
    except Interrupted:
        raise
    except Exception as error:  # of any type: the sweep shows why the trial has no score
        _write_failure(run, getattr(error, "exit_code", 1), _describe_error(error))
        raise


def sweep_error(result: SweepResult) -> TunesmithError | None:
    """Return the error of a sweep with failed trials. Its exit code is theirs if all have the same one, else 1."""
    failed = {f"#{trial.number} {trial.label}": trial.failure for trial in result.trials if trial.failure}
    if not failed:
        return None
    message = f"{len(failed)} of {len(result.trials)} trials failed: {'; '.join(failed)}"
    hint = "the others are done; the same command tries these again"
    error = TunesmithError(message, where=str(result.path), hint=hint, code="trials-failed")
    codes = {failure["exit_code"] for failure in failed.values()}
    error.exit_code = codes.pop() if len(codes) == 1 else 1
    return error


def _run_in_subprocess(sweep: Sweep, trial: Trial) -> None:
    """Run a trial and wait for it. Forward the first signal to it, and stop when it has stopped."""
    run = sweep.run(trial)
    command = [sys.executable, "-m", "tunesmith", "sweep", str(sweep.path), "--trial", str(trial.number)]
    # Its own process group: otherwise Ctrl-C reaches it in addition to our signal, and two mean "at once".
    # Its stdout goes to our stderr, because our stdout is for the result.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, process_group=0) as process:
        forwarded = False
        while process.poll() is None:
            if interrupt.requested_signal() and not forwarded:
                process.send_signal(signal.SIGTERM)
                forwarded = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
    interrupt.check()
    code = process.returncode
    if code == Interrupted.exit_code:
        raise Interrupted(f"trial {trial.number} was stopped", where=str(run), hint="repeat the command to resume")
    if code and failure_of(run) is None:
        _write_failure(run, 1, describe_exit(code))


def _describe_error(error: Exception) -> str:
    """Return the reason for an error."""
    if isinstance(error, TunesmithError):
        return f"{error.where}: {error.message}" if error.where else error.message
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def describe_exit(code: int) -> str:
    """Return the reason for a process that ended without writing a reason."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL), as systems do when memory runs out"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _write_failure(run: RunDir, exit_code: int, reason: str) -> None:
    write_json(failure_path(run), {"exit_code": exit_code, "reason": reason})
