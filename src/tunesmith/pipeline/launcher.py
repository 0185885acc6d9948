"""Start a run in this process, with torchrun, or as Slurm jobs, by the recipe's `launch` section."""

import os
import sys
from shlex import quote
from typing import NoReturn

from tunesmith.core.dist_env import rank_info
from tunesmith.core.errors import RecipeError
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.pipeline.runner import run_opened
from tunesmith.pipeline.runs import OpenedRun
from tunesmith.recipe.launch import LocalLaunch, SlurmLaunch, TorchrunLaunch


def launch_run(opened: OpenedRun, *, until: str | None, here: bool, detach: bool) -> RunDir | None:
    """Run the stages of an opened run, and return the run; return None on all ranks but rank 0.

    For the command line only: if the recipe asks for torchrun, this process is replaced by torchrun, which repeats the
    command on each rank.

    Args:
        until: the last stage to run; default all.
        here: run in this process, whatever the recipe's `launch` says.
        detach: return when the Slurm jobs are queued, instead of waiting until they end.

    Raises:
        TunesmithError: a stage failed or was refused; the error's `exit_code` is that of the command.
    """
    info = rank_info()
    launch = LocalLaunch(on="local") if here or info.world_size > 1 else opened.recipe.launch
    if detach and not isinstance(launch, SlurmLaunch):
        hint = "leave it out, or pass --on slurm"
        raise RecipeError("--detach has no effect on a run that runs on this machine", hint=hint, code="usage")
    if isinstance(launch, TorchrunLaunch) and launch.processes > 1:
        _exec_torchrun(launch.processes)
    if not isinstance(launch, SlurmLaunch):
        run = run_opened(opened, until=until)
        return run if info.is_rank0 else None
    from tunesmith.pipeline.submit import submit_run
    from tunesmith.pipeline.watch import watch_run

    run, submitted = opened.run, submit_run(opened, until=until)
    if submitted and not detach:  # without new jobs, those of an earlier command would be shown
        try:
            watch_run(run)
        except KeyboardInterrupt:
            log(f"the jobs keep running: tunesmith status {quote(str(run))}, or tunesmith cancel {quote(str(run))}")
            raise
    return run


def _exec_torchrun(processes: int) -> NoReturn:
    """Replace this process by torchrun, which runs the same command in many processes."""
    launcher = ["-m", "tunesmith.slurm.exit_code", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={processes}", "-m", "tunesmith", *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, *command])
