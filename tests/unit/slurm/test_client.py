"""The client parses what Slurm's commands print, and raises what they refuse."""

import os
from pathlib import Path

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.slurm import client

# The output of `scontrol show job` of Slurm 22.05.
SHOWN = (
    "JobId=12 JobName=viggo-train UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=1 Nice=0 Account=(null) "
    "JobState={state} Reason={reason} Dependency=afterok:11(unfulfilled) Requeue=1 Restarts={restarts} BatchFlag=1 "
    "ExitCode=0:0 RunTime=00:01:05 TimeLimit=00:30:00 TimeMin=N/A StartTime=2026-11-26T05:00:00 "
    "EndTime=2026-11-26T05:30:00 NodeList={nodes} BatchHost=node1 Command=/a/runs/x y=1/train.sbatch"
)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for scripts that replace Slurm's commands, first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    return folder


def command(folder: Path, name: str, script: str) -> None:
    """Write a script that replaces a command of Slurm."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def test_job_state_of_a_running_job(commands: Path) -> None:
    command(
        commands, "scontrol", f"echo '{SHOWN.format(state='RUNNING', reason='None', restarts=2, nodes='node[1-2]')}'"
    )
    state = client.job_state("12", "viggo-train")
    assert (state.state, state.reason, state.nodes, state.restarts) == ("RUNNING", "", "node[1-2]", 2)
    assert state.is_active
    assert state.run_time == "00:01:05"
    assert state.end_time is not None
    assert state.end_time.minute == 30


def test_job_state_of_a_pending_job(commands: Path) -> None:
    shown = SHOWN.format(state="PENDING", reason="Dependency", restarts=0, nodes="(null)")
    command(commands, "scontrol", f"echo '{shown}'")
    state = client.job_state("12", "viggo-train")
    assert (state.state, state.reason, state.nodes, state.is_active) == ("PENDING", "Dependency", "", True)


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"])
def test_job_state_of_an_ended_job(state: str, commands: Path) -> None:
    command(commands, "scontrol", f"echo '{SHOWN.format(state=state, reason='None', restarts=0, nodes='node1')}'")
    assert not client.job_state("12", "viggo-train").is_active


def test_job_state_compares_the_name_because_numbers_are_reused(commands: Path) -> None:
    command(commands, "scontrol", f"echo '{SHOWN.format(state='RUNNING', reason='None', restarts=0, nodes='node1')}'")
    assert client.job_state("12", "viggo-prepare").state == client.GONE


def test_job_array_is_active_while_a_task_is(commands: Path) -> None:
    tasks = [SHOWN.format(state=state, reason="None", restarts=0, nodes="node1") for state in ("FAILED", "RUNNING")]
    command(commands, "scontrol", f"echo '{tasks[0]}'; echo '{tasks[1]}'")
    assert client.job_state("12", "viggo-train").is_active


@pytest.mark.parametrize(("printed", "code"), [("0:0", 0), ("7:0", 7), ("0:9", 137)])
def test_exit_code_of_a_job_is_that_of_a_shell(printed: str, code: int, commands: Path) -> None:
    shown = SHOWN.format(state="FAILED", reason="None", restarts=0, nodes="node1")
    command(commands, "scontrol", f"echo '{shown.replace('ExitCode=0:0', f'ExitCode={printed}')}'")
    assert client.job_state("12", "viggo-train").exit_code == code


def test_submit_drops_the_variables_of_an_outer_job(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setenv("SLURM_CONF", "/a/slurm.conf")
    command(commands, "sbatch", 'echo "Welcome!"; echo "1${SLURM_RESTART_COUNT:-0}"; echo "$SLURM_CONF" >&2')
    assert client.submit(Path("x.sbatch")) == "10"


def test_job_state_is_gone_if_slurm_has_forgotten_the_job(commands: Path) -> None:
    command(commands, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert client.job_state("12", "viggo-train").state == client.GONE


def test_job_state_raises_if_the_controller_does_not_answer(commands: Path) -> None:
    command(commands, "scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with raises(TunesmithError, "slurm-failed", "Unable to contact slurm controller"):
        client.job_state("12", "viggo-train")


def test_submit_after_another_job(commands: Path) -> None:
    command(commands, "sbatch", f'echo "$@" >{commands}/arguments; echo "13;cluster"')
    assert client.submit(Path("x.sbatch"), after="12") == "13"
    arguments = (commands / "arguments").read_text()
    assert arguments == "--parsable --dependency=afterok:12 --kill-on-invalid-dep=yes x.sbatch\n"
    assert client.submit(Path("x.sbatch")) == "13"
    assert (commands / "arguments").read_text() == "--parsable x.sbatch\n"


def test_submit_puts_our_python_first_in_path(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/somewhere/bin/python")
    command(commands, "sbatch", f'echo "$PATH" >{commands}/path; echo 13')
    client.submit(Path("x.sbatch"))
    assert (commands / "path").read_text().startswith("/somewhere/bin:")


def test_refused_job_is_an_error_of_the_recipe(commands: Path) -> None:
    command(commands, "sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    with raises(RecipeError, "slurm-refused", "invalid partition specified: nope", where="x.sbatch"):
        client.submit(Path("x.sbatch"))
    with raises(RecipeError, "slurm-refused", "invalid partition specified: nope", where="launch"):
        client.estimate_start("#!/bin/bash")


def test_estimate_start(commands: Path) -> None:
    output = "sbatch: Job 16 to start at 2026-11-26T06:00:36 using 2 processors on nodes node[1-2] in partition main"
    command(commands, "sbatch", f"cat >{commands}/stdin; echo '{output}' >&2")
    assert client.estimate_start("#!/bin/bash\ntrue\n") == "would start it at 2026-11-26T06:00:36"
    assert (commands / "stdin").read_text() == "#!/bin/bash\ntrue\n"
    command(
        commands, "sbatch", "echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    )
    assert "Unable to contact" in client.estimate_start("#!/bin/bash")


def test_submit_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert not client.is_available()
    with raises(RecipeError, "no-slurm", "sbatch", "--on local"):
        client.submit(Path("x.sbatch"))
