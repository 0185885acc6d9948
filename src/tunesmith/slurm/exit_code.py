"""Run a launcher such as torchrun, and exit with the code of the process that failed, which torchrun replaces by 1.

python -m tunesmith.slurm.exit_code torch.distributed.run --nproc-per-node=4 -m tunesmith run my.yaml
"""

import runpy
import sys


def main() -> None:
    """Run the module named on the command line with the arguments that follow it."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    sys.argv = sys.argv[1:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        print(failure.message, file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main()
