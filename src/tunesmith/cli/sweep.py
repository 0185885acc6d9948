"""The command that runs one recipe with several settings: `sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tunesmith.cli.app import RUN, command
from tunesmith.cli.options import AS_IN_RECIPE, AsJson, Flag, LaunchOptions, Overrides
from tunesmith.cli.output import print_result
from tunesmith.cli.run import print_run
from tunesmith.core.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.sweep.axes import Sweep
    from tunesmith.sweep.collect import SweepResult


@command(RUN)
def sweep(
    recipe: Annotated[Path, Parameter(help="The recipe's file, or the folder of a sweep to resume.")],
    /,
    *overrides: Overrides,
    over: list[str] | None = None,
    models: str | None = None,
    threshold: float | None = None,
    out: Annotated[Path | None, Parameter(help="Folder of the sweep. Default: runs/NAME/sweep-ID.")] = None,
    plan: Flag = False,
    trial: int | None = None,
    launch: LaunchOptions = AS_IN_RECIPE,
    as_json: AsJson = False,
) -> None:
    """Run a recipe for every combination of some settings, and name the smallest trial above a threshold.

    Args:
        over: A key with its values, such as tuning.rank=2,8,32; may be given several times.
        models: Base models, separated by commas: short for a first --over model.base=A,B.
        threshold: Score that a trial must exceed. Default: its gain must exceed promote.min_gain.
        plan: List the trials with their estimates, without running any.
        trial: Run only the trial with this number, in this process. Slurm job arrays use it.

    Examples:
        tunesmith sweep my.yaml --over tuning.rank=2,8,32 --plan
        tunesmith sweep my.yaml --models org/small,org/large --threshold 0.8
    """
    from tunesmith.sweep.axes import is_sweep, split_values
    from tunesmith.sweep.run import collect_sweep, open_sweep, run_sweep, run_trial
    from tunesmith.sweep.slurm_array import is_for_slurm, submit_sweep

    if trial is not None:
        if over or models or overrides or out or plan or threshold is not None or launch != AS_IN_RECIPE:
            raise RecipeError("--trial takes the folder of a sweep and no other option", code="usage")
        print_run(run_trial(recipe, trial), as_json)
        return
    is_resumed = is_sweep(recipe)
    if is_resumed and launch.nodes is not None:
        raise RecipeError(
            "--nodes has no effect on the folder of a sweep: its recipes are already written", code="usage"
        )
    axes = {
        "over": over or [],
        "models": split_values(models) if models else [],
        "overrides": overrides if is_resumed else (*overrides, *launch.overrides()),
    }
    opened = open_sweep(recipe, out=out, **axes)
    on_slurm = not plan and launch.on != "local" and is_for_slurm(opened, recipe)
    submits = on_slurm and (launch.on == "slurm" or not is_resumed)
    if threshold is not None and (plan or submits):
        use = "--plan" if plan else "submitting to Slurm; pass it when the trials are done"
        raise RecipeError(f"--threshold has no effect on {use}", code="usage")
    if plan:
        _print_plan(opened, recipe, as_json)
    elif submits:
        print(submit_sweep(opened, recipe))
    else:
        result = (
            collect_sweep(opened, threshold) if on_slurm else run_sweep(recipe, out=out, threshold=threshold, **axes)
        )
        _print_result(result, as_json)


def _print_plan(opened: "Sweep", recipe: Path, as_json: bool) -> None:
    from tunesmith.sweep.plan import plan_json, plan_sweep, plan_text

    plans = plan_sweep(opened, recipe)
    print_result(plan_json(opened, plans), as_json, lambda: plan_text(opened, plans))


def _print_result(result: "SweepResult", as_json: bool) -> None:
    from tunesmith.sweep.run import sweep_error
    from tunesmith.sweep.text import as_text

    shown = {"sweep": str(result.path), **result.to_json(), "promote": result.promote_command}
    print_result(shown, as_json, lambda: as_text(result), sweep_error(result))
