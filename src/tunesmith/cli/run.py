"""The commands that carry out a run: `run`, one for each stage, `status` and `cancel`."""

from os.path import normpath
from shlex import quote
from typing import Any

from tunesmith.cli.app import RUN, command
from tunesmith.cli.options import AS_IN_RECIPE, AsJson, Detach, LaunchOptions, Overrides, RecipeOrRun, RunFolder, RunOut
from tunesmith.cli.output import Reported, print_result
from tunesmith.core.errors import NotProved, VerdictRefused
from tunesmith.core.rundir import RunDir
from tunesmith.core.stages import STAGES


def _add_command(name: str, summary: str, example: str, until: str | None = None) -> None:
    """Add a command that takes a run through its stages, up to and including `until`; by default all.

    Args:
        example: the arguments of the second example; the first is the name of a recipe.
    """

    def run_stages(
        recipe: RecipeOrRun,
        /,
        *overrides: Overrides,
        out: RunOut = None,
        launch: LaunchOptions = AS_IN_RECIPE,
        detach: Detach = False,
        as_json: AsJson = False,
    ) -> None:
        from tunesmith.pipeline.launcher import launch_run
        from tunesmith.pipeline.runs import open_run

        opened = open_run(recipe, (*overrides, *launch.overrides()), out)
        try:
            run = launch_run(opened, until=until, here=launch.on == "local", detach=detach)
        except VerdictRefused as refused:  # the run is complete; only its promotion was refused
            print_run(opened.run, as_json, refused)
            raise Reported(refused) from None
        except NotProved as not_proved:  # an export was not published; everything else is complete
            print_run(opened.run, as_json)
            raise Reported(not_proved) from None
        if run is not None:
            print_run(run, as_json)

    run_stages.__doc__ = f"{summary}\n\nExamples:\n    tunesmith {name} my.yaml\n    tunesmith {name} {example}"
    command(RUN, name=name)(run_stages)


_SUMMARY = "Run all stages. Finished stages are skipped, and an interrupted one resumes."
_add_command("run", _SUMMARY, "my.yaml train.max_steps=20 --out runs/try")
for _stage in STAGES:
    if _stage.command == _stage.name:
        _add_command(_stage.name, _stage.summary, "runs/my/ID --json", until=_stage.name)


def print_run(run: RunDir, as_json: bool, refused: VerdictRefused | None = None) -> None:
    """Print a run's folder and, once it is evaluated, its verdict and promotion.

    Args:
        refused: why the run was not promoted.
    """
    from tunesmith.core.verdict_reader import read_verdict

    verdict = read_verdict(run.verdict).to_json() if run.manifest("evaluate") else None
    promoted = run.manifest("promote")
    exports = (run.manifest("export") or {}).get("exports", [])
    result: dict[str, Any] = {"run": str(run), "verdict": verdict, "promoted": promoted, "exports": exports}
    if refused is not None:
        result |= {"promoted": None, "not_promoted": refused.message}

    def text() -> str:
        if verdict is None:
            return str(run)
        from tunesmith.report.collect import collect
        from tunesmith.report.wording import headline, incumbent_sentences, seed_sentences

        view = collect(run)
        lines = [headline(view), *seed_sentences(view), *incumbent_sentences(view)]
        lines += [f"run:    {run}", f"report: {run.report}"]
        if refused is not None:
            force = f'tunesmith promote {quote(str(run))} --force --reason "..."'
            reason = f" ({refused.where} {refused.message})" if refused.code == "not-comparable" else ""
            lines.append(f"model:  not promoted{reason}; to promote it anyway: {force}")
        elif promoted:
            lines.append(f"model:  {promoted['model']}@{promoted['alias']} (version {promoted['version']})")
            if (before := promoted.get("replaced")) is not None:
                compared = "" if promoted.get("incumbent") else ", which was not compared"
                lines.append(f"        {promoted['alias']} was version {before}{compared}")
        for entry in exports:
            lines.append(f"export: {normpath(run.path / entry['folder'])} ({entry['type']}, {entry['proof']})")
        return "\n".join(lines)

    print_result(result, as_json, text)


@command(RUN)
def status(run: RunFolder, /, *, as_json: AsJson = False) -> None:
    """Show a run's stages, progress and jobs.

    Examples:
        tunesmith status runs/my/ID
        tunesmith status runs/my/ID --json
    """
    from tunesmith.pipeline.status import status_of

    run_status = status_of(RunDir.existing(run))
    print_result(run_status.to_json(), as_json, str(run_status))


@command(RUN)
def cancel(run: RunFolder, /, *, as_json: AsJson = False) -> None:
    """Cancel a run's Slurm jobs. Running jobs write a checkpoint first; `run` resumes.

    Examples:
        tunesmith cancel runs/my/ID
        tunesmith cancel runs/my/ID --json
    """
    from tunesmith.pipeline.submit import cancel_run

    jobs = cancel_run(RunDir.existing(run))
    print_result([job.job for job in jobs], as_json, "\n".join(f"cancelled {job.stage}, job {job.job}" for job in jobs))
