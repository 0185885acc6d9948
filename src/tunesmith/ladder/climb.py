"""Rung by rung: each is an ordinary run in a process of its own, and one that fails does not stop the others.

A process of its own, because the most memory that a run took is known of a process only, and because a rung that the
system kills for its memory must not take the ladder with it.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.core import interrupt
from tunesmith.core.errors import Interrupted, RecipeError, TunesmithError
from tunesmith.core.files import only_writer, write_json
from tunesmith.core.progress import say
from tunesmith.core.rundir import RunDir
from tunesmith.ladder.collect import Result, check_bar, collect, failure_of, failure_path
from tunesmith.ladder.page import write_result
from tunesmith.ladder.rungs import Ladder, Rung, check_ladder, is_ladder, list_rungs, read_ladder, write_ladder
from tunesmith.ladder.share import share
from tunesmith.pipeline.runner import run_recipe

_SECONDS_BETWEEN_LOOKS = 0.2


def run_ladder(
    recipe: Path | str,
    *,
    over: Sequence[str] = (),
    models: Sequence[str] = (),
    overrides: Sequence[str] = (),
    out: Path | str | None = None,
    bar: float | None = None,
) -> Result:
    """Run a recipe along a ladder and say which is the smallest rung that clears the bar.

    Rungs that are finished are skipped, an interrupted one goes on, one that failed is tried again. None is promoted.

    Args:
        recipe: the recipe's file, or the folder of a ladder that is to go on.
        over: axes, each `key=value,value,...`.
        models: values of `model.base`; they come before the other axes.
        overrides: `key=value` changes that all rungs have.
        out: the ladder's folder; default `runs/NAME/ladder-ID`.
        bar: what the tuned score must clear; default: the gain must clear `promote.min_gain`.

    Raises:
        RecipeError: a rung's recipe is wrong; nothing was written.
        DataError: the rows of a rung do not exist; nothing was written.
        Interrupted: a signal came; the same call goes on.
    """
    ladder = open_ladder(Path(recipe), over=over, models=models, overrides=overrides, out=Path(out) if out else None)
    is_written = is_ladder(Path(recipe))
    check_bar(ladder.recipe(ladder.rungs[0]) if is_written else check_ladder(ladder, Path(recipe))[0][0], bar)
    with only_writer(ladder.lock), interrupt.watched():
        if not is_written:
            write_ladder(ladder, Path(recipe))
        for rung in ladder.rungs:
            interrupt.check()
            say(f"rung {rung.number} of {len(ladder.rungs)}: {rung.label}")
            _in_its_own_process(ladder, rung)
            found = write_result(collect(ladder, bar))  # after each, so that there is something to look at early
    return found


def collected(ladder: Ladder, bar: float | None) -> Result:
    """Return and write what the rungs of a ladder have left, and run none."""
    check_bar(ladder.recipe(ladder.rungs[0]), bar)
    with only_writer(ladder.lock):
        return write_result(collect(ladder, bar))


def open_ladder(
    recipe: Path, *, over: Sequence[str], models: Sequence[str], overrides: Sequence[str], out: Path | None
) -> Ladder:
    """Return the ladder that a recipe and axes name, or that a folder holds."""
    if not is_ladder(recipe):
        return list_rungs(recipe, over=over, models=models, overrides=overrides, out=out)
    if over or models or overrides or out:
        raise RecipeError("is a ladder already: axes, changes and --out have no effect on it", where=str(recipe))
    return read_ladder(recipe)


def run_rung(folder: Path | str, number: int) -> RunDir:
    """Run one rung of a ladder in this process; a job array runs them side by side with this.

    Raises:
        TunesmithError: of the kind that says what went wrong, which is kept for `collect`.
    """
    ladder = read_ladder(Path(folder))
    if not 1 <= number <= len(ladder.rungs):
        raise RecipeError(f"has no rung {number}", where=str(folder), hint=f"it has 1 to {len(ladder.rungs)}")
    rung = ladder.rungs[number - 1]
    run = ladder.run(rung)
    failure_path(run).unlink(missing_ok=True)
    try:
        with interrupt.watched():
            share(ladder, rung)
            return run_recipe(run.path, until="evaluate")
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, the ladder has to say why there is no score
        _note_failure(run, *_told(error))
        raise


def failed(result: Result) -> TunesmithError | None:
    """Return the error that a ladder ends with where rungs failed, else None; its exit code is theirs if they agree."""
    rungs = [outcome for outcome in result.outcomes if outcome.failure]
    if not rungs:
        return None
    codes = {failure["exit_code"] for outcome in rungs if (failure := outcome.failure)}
    names = "; ".join(f"#{outcome.number} {outcome.label}" for outcome in rungs)
    error = TunesmithError(
        f"{len(rungs)} of {len(result.outcomes)} rungs failed: {names}",
        where=str(result.path),
        hint="the others are done; the same command tries these again",
    )
    error.exit_code = codes.pop() if len(codes) == 1 else 1
    return error


def _in_its_own_process(ladder: Ladder, rung: Rung) -> None:
    """Run a rung and wait for it. A signal that comes to us is passed on once, and we stop when the rung has."""
    run = ladder.run(rung)
    command = [sys.executable, "-m", "tunesmith", "ladder", str(ladder.path), "--rung", str(rung.number)]
    # Its own group: Ctrl-C on a terminal would reach it beside the signal we pass on, and two mean "at once".
    # What it says on stdout is news here, where stdout is for the result.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, process_group=0) as process:
        passed_on = False
        while process.poll() is None:
            if interrupt.requested() and not passed_on:
                process.send_signal(signal.SIGTERM)
                passed_on = True
            try:
                process.wait(_SECONDS_BETWEEN_LOOKS)
            except subprocess.TimeoutExpired:
                continue
    interrupt.check()
    code = process.returncode
    if code == Interrupted.exit_code:
        raise Interrupted(f"rung {rung.number} was stopped", where=str(run), hint="run the same command again to go on")
    if code and failure_of(run) is None:
        _note_failure(run, *_ended(code))


def _told(error: Exception) -> tuple[int, str]:
    if isinstance(error, TunesmithError):
        return error.exit_code, f"{error.where}: {error.message}" if error.where else error.message
    return 1, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _ended(code: int) -> tuple[int, str]:
    """Explain the end of a process that could not say itself why."""
    if code == -signal.SIGKILL:
        return 1, "was killed (SIGKILL), as systems do when memory runs out"
    return 1, f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _note_failure(run: RunDir, exit_code: int, reason: str) -> None:
    write_json(failure_path(run), {"exit_code": exit_code, "reason": reason})
