"""What Slurm's commands say is read as they say it; what they refuse is told, and of whom."""

import os
from pathlib import Path

import pytest

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.slurm import client

# As Slurm 22.05 says it.
SHOWN = (
    "JobId=12 JobName=viggo-train UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=1 Nice=0 Account=(null) "
    "JobState={state} Reason={reason} Dependency=afterok:11(unfulfilled) Requeue=1 Restarts={restarts} BatchFlag=1 "
    "ExitCode=0:0 RunTime=00:01:05 TimeLimit=00:30:00 TimeMin=N/A StartTime=2026-11-26T05:00:00 "
    "EndTime=2026-11-26T05:30:00 NodeList={nodes} BatchHost=node1 Command=/a/runs/x y=1/train.sbatch"
)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that come before those of the system."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    return folder


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def test_a_job_that_runs(commands: Path) -> None:
    command(
        commands, "scontrol", f"echo '{SHOWN.format(state='RUNNING', reason='None', restarts=2, nodes='node[1-2]')}'"
    )
    found = client.job_state("12", "viggo-train")
    assert (found.state, found.reason, found.nodes, found.restarts) == ("RUNNING", "", "node[1-2]", 2)
    assert found.is_active
    assert found.run_time == "00:01:05"
    assert found.ends is not None
    assert found.ends.minute == 30


def test_a_job_that_waits(commands: Path) -> None:
    shown = SHOWN.format(state="PENDING", reason="Dependency", restarts=0, nodes="(null)")
    command(commands, "scontrol", f"echo '{shown}'")
    found = client.job_state("12", "viggo-train")
    assert (found.state, found.reason, found.nodes, found.is_active) == ("PENDING", "Dependency", "", True)


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"])
def test_a_job_that_is_over(state: str, commands: Path) -> None:
    command(commands, "scontrol", f"echo '{SHOWN.format(state=state, reason='None', restarts=0, nodes='node1')}'")
    assert not client.job_state("12", "viggo-train").is_active


def test_a_number_that_another_job_has_now_is_not_ours(commands: Path) -> None:
    command(commands, "scontrol", f"echo '{SHOWN.format(state='RUNNING', reason='None', restarts=0, nodes='node1')}'")
    assert client.job_state("12", "viggo-prepare").state == client.GONE


def test_an_array_is_active_while_a_task_is(commands: Path) -> None:
    tasks = [SHOWN.format(state=state, reason="None", restarts=0, nodes="node1") for state in ("FAILED", "RUNNING")]
    command(commands, "scontrol", f"echo '{tasks[0]}'; echo '{tasks[1]}'")
    assert client.job_state("12", "viggo-train").is_active


@pytest.mark.parametrize(("said", "code"), [("0:0", 0), ("7:0", 7), ("0:9", 137)])
def test_exit_codes_are_those_of_a_shell(said: str, code: int, commands: Path) -> None:
    shown = SHOWN.format(state="FAILED", reason="None", restarts=0, nodes="node1")
    command(commands, "scontrol", f"echo '{shown.replace('ExitCode=0:0', f'ExitCode={said}')}'")
    assert client.job_state("12", "viggo-train").exit_code == code


def test_what_an_outer_job_said_of_itself_does_not_reach_ours(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setenv("SLURM_CONF", "/a/slurm.conf")
    command(commands, "sbatch", 'echo "Welcome!"; echo "1${SLURM_RESTART_COUNT:-0}"; echo "$SLURM_CONF" >&2')
    assert client.submit(Path("x.sbatch")) == "10"


def test_a_job_that_slurm_has_forgotten(commands: Path) -> None:
    command(commands, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert client.job_state("12", "viggo-train").state == client.GONE


def test_a_controller_that_does_not_answer_is_not_a_job_that_is_gone(commands: Path) -> None:
    command(commands, "scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(TunesmithError, match="Unable to contact slurm controller"):
        client.job_state("12", "viggo-train")


def test_a_job_is_put_in_line_behind_another(commands: Path) -> None:
    command(commands, "sbatch", f'echo "$@" >{commands}/asked; echo "13;cluster"')
    assert client.submit(Path("x.sbatch"), after="12") == "13"
    asked = (commands / "asked").read_text()
    assert asked == "--parsable --dependency=afterok:12 --kill-on-invalid-dep=yes x.sbatch\n"
    assert client.submit(Path("x.sbatch")) == "13"
    assert (commands / "asked").read_text() == "--parsable x.sbatch\n"


def test_jobs_find_the_python_that_submits_them(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/somewhere/bin/python")
    command(commands, "sbatch", f'echo "$PATH" >{commands}/path; echo 13')
    client.submit(Path("x.sbatch"))
    assert (commands / "path").read_text().startswith("/somewhere/bin:")


def test_what_slurm_refuses_is_the_recipe_s_to_change(commands: Path) -> None:
    command(commands, "sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    with pytest.raises(RecipeError, match="does not take it: invalid partition specified: nope"):
        client.submit(Path("x.sbatch"))
    with pytest.raises(RecipeError, match="invalid partition specified: nope"):
        client.estimate_start("#!/bin/bash")


def test_when_a_job_would_begin(commands: Path) -> None:
    said = "sbatch: Job 16 to start at 2026-11-26T06:00:36 using 2 processors on nodes node[1-2] in partition main"
    command(commands, "sbatch", f"cat >{commands}/given; echo '{said}' >&2")
    assert client.estimate_start("#!/bin/bash\ntrue\n") == "would begin it at 2026-11-26T06:00:36"
    assert (commands / "given").read_text() == "#!/bin/bash\ntrue\n"
    command(
        commands, "sbatch", "echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    )
    assert "Unable to contact" in client.estimate_start("#!/bin/bash")


def test_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert not client.is_available()
    with pytest.raises(RecipeError, match="there is no Slurm here: no command `sbatch`") as error:
        client.submit(Path("x.sbatch"))
    assert "--on local" in str(error.value)
