"""Start a run where it is to run: here, in the processes that somebody started, or as jobs of a cluster."""

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
    """Take a run through its stages, and return it; None in all processes of a run but the first.

    For the command line: where torchrun is to start many processes, they are given this process's own.

    Args:
        until: the last stage to run; default all.
        here: in this process, whatever the recipe's `launch` says.
        detach: return when the jobs of a cluster are in line; else when they are over.

    Raises:
        TunesmithError: of the kind that says what went wrong.
    """
    this = rank_info()
    launch = LocalLaunch(on="local") if here or this.world_size > 1 else opened.recipe.launch
    if detach and not isinstance(launch, SlurmLaunch):
        raise RecipeError("--detach has no effect on a run that runs here")
    if isinstance(launch, TorchrunLaunch) and launch.processes > 1:
        _become_torchrun(launch.processes)
    if not isinstance(launch, SlurmLaunch):
        run = run_opened(opened, until=until)
        return run if this.is_rank0 else None
    from tunesmith.pipeline.submit import submit_run
    from tunesmith.pipeline.watch import watch_run

    run, submitted = opened.run, submit_run(opened, until=until)
    if submitted and not detach:  # else jobs of an earlier command would be reported
        try:
            watch_run(run)
        except KeyboardInterrupt:
            log(f"its jobs go on: tunesmith status {quote(str(run))}, or tunesmith cancel {quote(str(run))}")
            raise
    return run


def _become_torchrun(processes: int) -> NoReturn:
    """Let torchrun take this process's place, and run this very command in many."""
    launcher = ["-m", "tunesmith.slurm.exit_code", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={processes}", "-m", "tunesmith", *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, *command])
