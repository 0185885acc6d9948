"""The verbs about runs, scores, the registry and the machine. Data goes to stdout, news and progress to stderr."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tunesmith.cli.app import app
from tunesmith.cli.options import (
    AS_WRITTEN,
    AsJson,
    Detach,
    HtmlFile,
    Out,
    Overrides,
    RecipeOrRun,
    RunFolder,
    Where,
)
from tunesmith.cli.output import Reported, print_result
from tunesmith.core.errors import RecipeError, TunesmithError, VerdictRefused
from tunesmith.core.rundir import RunDir
from tunesmith.core.stages import STAGES, Stage


@app.command
def init(template: str = "chat", *, out: Path = Path("recipe.yaml")) -> None:
    """Write a commented recipe to start from.

    Args:
        template: `chat`, `completion`, `seq2seq` or `text`.
        out: the file to write; an existing one is left alone.
    """
    from tunesmith.core.files import write_text
    from tunesmith.recipe.templates import read_template

    text = read_template(template)
    if os.path.lexists(out):
        raise RecipeError("exists already", where=str(out), hint="name another file with --out")
    write_text(out, text)
    print(f"wrote {out}; edit it, then: tunesmith plan {quote(str(out))}", file=sys.stderr)


@app.command
def plan(
    recipe: Path, *overrides: Overrides, out: Out = None, where: Where = AS_WRITTEN, as_json: AsJson = False
) -> None:
    """Check everything that can be checked without training, and show what would be done."""
    from tunesmith.plan.run_plan import plan_run

    found = plan_run(recipe, (*overrides, *where.changes()), out=out)
    error = _error_of(found.require_fit)  # reported after the plan, whose numbers show how to make it fit
    shown = found.to_json() | ({"error": error.to_json()} if error else {})
    print_result(shown, as_json, str(found))
    if error:
        raise Reported(error)


def _error_of(check: Callable[[], None]) -> TunesmithError | None:
    try:
        check()
    except TunesmithError as error:
        return error
    return None


@app.command
def show(
    recipe: RecipeOrRun,
    *overrides: Overrides,
    rows: int = 3,
    split: str | None = None,
    stage: Literal["train", "evaluate"] = "train",
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Show rows as the model sees them: every token, trained ones marked.

    Args:
        rows: how many.
        split: train (the default), valid or test.
        stage: rows as training reads them, or test prompts as evaluation sends them, with the answers a run has.
    """
    from tunesmith.plan.inspect import inspect_rows
    from tunesmith.report.tokens import as_html, as_text

    samples = inspect_rows(recipe, overrides, rows=rows, split=split, stage=stage)
    if html is not None:
        as_html(samples, html)
        print(f"wrote {html}", file=sys.stderr)
        return
    print_result(samples, as_json, lambda: as_text(samples, colour=sys.stdout.isatty()))


@app.command
def run(
    recipe: RecipeOrRun, *overrides: Overrides, out: Out = None, where: Where = AS_WRITTEN, detach: Detach = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run all stages; finished ones are skipped, an interrupted one goes on."""
    _stages(recipe, overrides, out, None, where, detach, as_json)


def _add_verb(stage: Stage) -> None:
    """Add the verb that takes a run up to a stage."""

    def verb(
        recipe: RecipeOrRun, *overrides: Overrides, out: Out = None, where: Where = AS_WRITTEN, detach: Detach = False,
        as_json: AsJson = False,
    ) -> None:  # fmt: skip
        _stages(recipe, overrides, out, stage.name, where, detach, as_json)

    app.command(verb, name=stage.verb, help=stage.summary)


for _stage in STAGES:
    if _stage.verb == _stage.name:
        _add_verb(_stage)


def _stages(
    recipe: Path, overrides: tuple[str, ...], out: Path | None, until: str | None, where: Where, detach: bool,
    as_json: bool,
) -> None:  # fmt: skip
    from tunesmith.pipeline.launcher import launch_run
    from tunesmith.pipeline.runs import open_run

    opened = open_run(recipe, (*overrides, *where.changes()), out)
    try:
        done = launch_run(opened, until=until, here=where.on == "local", detach=detach)
    except VerdictRefused as refused:  # the run is complete; only its promotion was refused
        _summary(opened.run, as_json, refused)
        raise Reported(refused) from None
    if done is not None:
        _summary(done, as_json)


@app.command
def status(run: RunFolder, *, as_json: AsJson = False) -> None:
    """Say how a run does: its stages, how far it is, and its jobs."""
    from tunesmith.pipeline.status import status_of

    found = status_of(RunDir.existing(run))
    print_result(found.to_json(), as_json, str(found))


@app.command
def cancel(run: RunFolder, *, as_json: AsJson = False) -> None:
    """Take a run's jobs out of Slurm's line; what runs is asked to save, and `run` goes on from it."""
    from tunesmith.pipeline.submit import cancel_run

    found = cancel_run(RunDir.existing(run))
    print_result(
        [one.job for one in found], as_json, "\n".join(f"cancelled {one.stage}, job {one.job}" for one in found)
    )


def _summary(run: RunDir, as_json: bool, refused: VerdictRefused | None = None) -> None:
    """Print where a run stands: its folder and, if there is one, its verdict, and why it was not promoted."""
    from tunesmith.core.verdict_reader import read_verdict

    verdict = read_verdict(run.verdict).to_json() if run.manifest("evaluate") else None
    promoted = run.manifest("promote")
    result: dict[str, Any] = {"run": str(run), "verdict": verdict, "promoted": promoted}
    if refused is not None:
        result |= {"promoted": None, "not_promoted": refused.message}

    def text() -> str:
        if verdict is None:
            return str(run)
        from tunesmith.report.collect import collect
        from tunesmith.report.wording import headline

        lines = [headline(collect(run)), f"run:    {run}", f"report: {run.report}"]
        if refused is not None:
            lines.append(f"model:  not promoted; to do so all the same: tunesmith promote {quote(str(run))} "
                         '--force --reason "..."')  # fmt: skip
        elif promoted:
            lines.append(f"model:  {promoted['model']}@{promoted['alias']} (version {promoted['version']})")
            if (before := promoted.get("replaced")) is not None:
                lines.append(f"        {promoted['alias']} held version {before}: not compared with it")
        return "\n".join(lines)

    print_result(result, as_json, text)


@app.command
def sweep(
    recipe: Annotated[Path, Parameter(help="A recipe's file, or the folder of a sweep to resume.")],
    *overrides: Overrides,
    over: Annotated[list[str] | None, Parameter(negative="")] = None,
    models: str | None = None,
    threshold: float | None = None,
    out: Annotated[Path | None, Parameter(help="Folder of the sweep; default runs/NAME/sweep-ID.")] = None,
    plan: Annotated[bool, Parameter(negative="")] = False,
    trial: int | None = None,
    where: Where = AS_WRITTEN,
    as_json: AsJson = False,
) -> None:
    """Run a recipe in several sizes, and find the smallest that clears a threshold.

    Args:
        over: an axis, such as tuning.rank=2,8,32; may be given several times.
        models: base models, separated by commas: the same as --over model.base=A,B, before the other axes.
        threshold: score that a trial must exceed; default: its gain must exceed promote.min_gain.
        plan: list the trials with their estimated needs, without running any.
        trial: run only the trial with this number, in this process (for job arrays).
    """
    from tunesmith.sweep import run as sweep_run
    from tunesmith.sweep.axes import is_sweep, split_values

    if trial is not None:
        if over or models or overrides or out or plan or threshold is not None or where != AS_WRITTEN:
            raise RecipeError("--trial takes the folder of a sweep and no other option")
        _summary(sweep_run.run_trial(recipe, trial), as_json)
        return
    begun = is_sweep(recipe)
    if begun and where.nodes is not None:
        raise RecipeError("--nodes has no effect on the folder of a sweep, whose recipes are already written")
    changes = overrides if begun else (*overrides, *where.changes())
    axes = {"over": over or [], "models": split_values(models) if models else [], "overrides": changes}
    listed = sweep_run.open_sweep(recipe, out=out, **axes)
    if plan:
        from tunesmith.sweep.plan import plan_json, plan_sweep, plan_text

        if threshold is not None:
            raise RecipeError("--threshold has no effect on --plan")
        planned = plan_sweep(listed, recipe)
        print_result(plan_json(listed, planned), as_json, lambda: plan_text(listed, planned))
        return
    from tunesmith.sweep.slurm_array import is_for_slurm, submit_sweep

    elsewhere = where.on != "local" and is_for_slurm(listed, recipe)
    if elsewhere and (where.on == "slurm" or not begun):
        if threshold is not None:
            raise RecipeError("--threshold has no effect when submitting to Slurm; give it when the trials are done")
        print(submit_sweep(listed, recipe))
        return
    from tunesmith.sweep.text import as_text

    # Trials of Slurm are only collected.
    if elsewhere:
        result = sweep_run.collect_sweep(listed, threshold)
    else:
        result = sweep_run.run_sweep(recipe, out=out, threshold=threshold, **axes)
    error = sweep_run.sweep_error(result)
    shown = {"sweep": str(result.path), **result.to_json(), "promote": result.promote_command}
    shown |= {"error": error.to_json()} if error else {}
    print_result(shown, as_json, lambda: as_text(result))
    if error:
        raise Reported(error)


@app.command
def compare(run: RunFolder, *, rows: int = 10, html: bool = False, as_json: AsJson = False) -> None:
    """Show the verdict, and the answers of base and tuned side by side.

    Args:
        rows: how many answers to show.
        html: write the report again, and print its path.
    """
    folder = RunDir.existing(run)
    if html:
        from tunesmith.report.render import write_report

        print(write_report(folder))
        return
    if folder.manifest("evaluate") is None:
        raise RecipeError("has not been evaluated", where=str(run), hint=f"tunesmith evaluate {quote(str(run))}")
    from tunesmith.core.verdict_reader import read_verdict
    from tunesmith.report.text import side_by_side

    print_result(read_verdict(folder.verdict).to_json(), as_json, lambda: side_by_side(folder, rows))


@app.command
def promote(
    what: Annotated[str, Parameter(help="A run's folder, or NAME@ALIAS / NAME@3 of the registry.")],
    *,
    alias: str | None = None,
    force: bool = False,
    reason: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Promote a run's tuned model, or move an alias to a version of the registry.

    Args:
        alias: the alias to move (for a version of the registry).
        force: promote although the verdict does not allow it; needs --reason, and is kept in the log.
        reason: why.
    """
    from tunesmith.promote.commands import move_alias, promote_run
    from tunesmith.registry.store import looks_like_reference

    if looks_like_reference(what) and not Path(what).exists():
        result = move_alias(what, alias, force=force, reason=reason)
    else:
        if alias is not None:
            raise RecipeError("--alias has no effect on a run", hint="the recipe's promote.alias says where to")
        result = promote_run(Path(what), force=force, reason=reason)
    print_result(result, as_json, f"{result['model']}@{result['alias']} is version {result['version']}")


@app.command
def rollback(name: str, *, alias: str = "staging", reason: str | None = None, as_json: AsJson = False) -> None:
    """Point an alias back at the version before.

    Args:
        name: the model's name, or NAME@ALIAS.
        alias: which alias.
        reason: why, for the log.
    """
    from tunesmith.promote.commands import roll_back

    name, _, named = name.partition("@")
    result = roll_back(name, named or alias, reason=reason)
    print_result(result, as_json, f"{name}@{named or alias} is version {result['version']}")


@app.command
def models(name: str | None = None, *, as_json: AsJson = False) -> None:
    """List the registry: models, or one model's versions and the moves of its aliases.

    Args:
        name: the model to show in full.
    """
    from tunesmith.promote.commands import list_models, list_versions

    result, text = list_models() if name is None else list_versions(name)
    print_result(result, as_json, text)


@app.command
def score(
    file: Path, *, metrics: str = "rouge,exact_match", database: Path | None = None, as_json: AsJson = False
) -> None:
    """Score rows {"prediction", "reference"} of a JSONL file, from any system.

    Args:
        metrics: names, separated by commas; docs/metrics.md lists them. Metrics of your own are `module:function`,
            looked for in the current folder too.
        database: SQLite file, for `execution`.
    """
    from tunesmith.scoring.standalone import score_file, score_text

    result = score_file(file, [name.strip() for name in metrics.split(",")], database=database, folder=Path.cwd())
    print_result(result, as_json, lambda: score_text(result))


@app.command
def verdict(
    base: Path,
    tuned: Path,
    *,
    metric: str | None = None,
    higher_is_better: Annotated[bool | None, Parameter(negative="--lower-is-better")] = None,
    min_gain: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two systems' per-row scores in pairs, and say whether the second is better.

    Two runs are compared by their files `RUN/evaluate/tuned/scores.jsonl`.

    Args:
        base: JSONL file, one {"id"?, "group"?, METRIC: value} per line.
        tuned: the same rows, scored for the other system.
        metric: the value to compare; needed if rows have several.
        higher_is_better: which values are better; by default the metric's name decides (`wer` and `loss`: lower).
        min_gain: the interval must lie above this; negative for "not worse by more than this".
        confidence: confidence of the interval.
        seed: seed of the bootstrap.
    """
    from tunesmith.scoring.standalone import compare_files, verdict_text

    result = compare_files(
        base, tuned, metric=metric, min_gain=min_gain, confidence=confidence, seed=seed,
        higher_is_better=higher_is_better,
    )  # fmt: skip
    print_result(result.to_json(), as_json, lambda: verdict_text(result))


@app.command
def doctor(*, as_json: AsJson = False) -> None:
    """Say what this machine has and lacks."""
    from tunesmith.doctor import examine_machine, machine_text

    found = examine_machine()
    print_result(found, as_json, lambda: machine_text(found))
