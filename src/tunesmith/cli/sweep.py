"""The command that runs one recipe with several settings: `sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tunesmith.cli.app import RUN, command
from tunesmith.cli.options import AS_IN_RECIPE, AsJson, Flag, LaunchOptions, Overrides
from tunesmith.cli.output import Reported, print_result
from tunesmith.cli.run import print_run
from tunesmith.core.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.sweep.axes import Sweep


@command(
    RUN,
    "tunesmith sweep my.yaml --over tuning.rank=2,8,32 --plan",
    "tunesmith sweep my.yaml --models org/small,org/large --threshold 0.8",
)
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
    """
    from tunesmith.sweep.axes import is_sweep, split_values
    from tunesmith.sweep.run import open_sweep, run_trial
    from tunesmith.sweep.slurm_array import is_for_slurm

    if trial is not None:
        if over or models or overrides or out or plan or threshold is not None or launch != AS_IN_RECIPE:
            raise RecipeError("--trial takes the folder of a sweep and no other option", code="usage")
        print_run(run_trial(recipe, trial), as_json)
        return
    is_resumed = is_sweep(recipe)
    if is_resumed and launch.nodes is not None:
        raise RecipeError(
            "--nodes has no effect on the folder of a sweep, whose recipes are already written", code="usage"
        )
    axes = {
        "over": over or [],
        "models": split_values(models) if models else [],
        "overrides": overrides if is_resumed else (*overrides, *launch.overrides()),
    }
    opened = open_sweep(recipe, out=out, **axes)
    if plan:
        if threshold is not None:
            raise RecipeError("--threshold has no effect on --plan", code="usage")
        _print_plan(opened, recipe, as_json)
        return
    on_slurm = launch.on != "local" and is_for_slurm(opened, recipe)
    if on_slurm and (launch.on == "slurm" or not is_resumed):
        if threshold is not None:
            raise RecipeError(
                "--threshold has no effect when submitting to Slurm; pass it when the trials are done", code="usage"
            )
        _submit(opened, recipe)
        return
    _print_result(opened, recipe, as_json, threshold=threshold, out=out, on_slurm=on_slurm, axes=axes)


def _print_plan(opened: "Sweep", recipe: Path, as_json: bool) -> None:
    from tunesmith.sweep.plan import plan_json, plan_sweep, plan_text

    plans = plan_sweep(opened, recipe)
    print_result(plan_json(opened, plans), as_json, lambda: plan_text(opened, plans))


def _submit(opened: "Sweep", recipe: Path) -> None:
    from tunesmith.sweep.slurm_array import submit_sweep

    print(submit_sweep(opened, recipe))


def _print_result(
    opened: "Sweep",
    recipe: Path,
    as_json: bool,
    *,
    threshold: float | None,
    out: Path | None,
    on_slurm: bool,
    axes: dict[str, Any],
) -> None:
    """Run the trials that are not done, and print the result. Trials on Slurm are only collected."""
    from tunesmith.sweep.run import collect_sweep, run_sweep, sweep_error
    from tunesmith.sweep.text import as_text

    result = collect_sweep(opened, threshold) if on_slurm else run_sweep(recipe, out=out, threshold=threshold, **axes)
    error = sweep_error(result)
    shown = {"sweep": str(result.path), **result.to_json(), "promote": result.promote_command}
    print_result(shown | ({"error": error.to_json()} if error else {}), as_json, lambda: as_text(result))
    if error:
        raise Reported(error)
