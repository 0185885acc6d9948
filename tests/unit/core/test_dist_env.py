"""The rank of a process is read from the variables of torchrun or srun, and an impossible rank is refused."""

import pytest
from tests.support.errors import raises

from tunesmith.core.dist_env import RankInfo, first_host, rank_info
from tunesmith.core.errors import RecipeError

SRUN_VARIABLES = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE")
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def set_torchrun(monkeypatch: pytest.MonkeyPatch, *values: str | None) -> None:
    for name, value in zip(TORCHRUN_VARIABLES, values, strict=True):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((None, None, None, None), RankInfo()),
        ((None, "4", None, None), RankInfo()),  # set by a scheduler that did not start this process
        (("0", "1", "0", "1"), RankInfo()),
        (("5", "8", "1", "4"), RankInfo(5, 8, 1, 4)),
    ],
)
def test_rank_from_torchrun(
    values: tuple[str | None, ...], expected: RankInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_torchrun(monkeypatch, *values)
    assert rank_info() == expected
    assert rank_info().is_rank0 == (expected.rank == 0)


@pytest.mark.parametrize(
    "values", [("2", "2", "0", "1"), ("one", "2", "0", "1"), ("0", "2", "0", "4"), ("-1", "2", "0", "1")]
)
def test_impossible_torchrun_rank_is_refused(values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    set_torchrun(monkeypatch, *values)
    with raises(RecipeError, "bad-rank", f"RANK={values[0]}, WORLD_SIZE={values[1]}"):
        rank_info()


def set_srun(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    """Set the variables that srun sets for a task."""
    set_torchrun(monkeypatch, None, None, None, None)
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(SRUN_VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[03-04]")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_STEP_ID", "0")


def test_rank_and_address_from_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    set_srun(monkeypatch, "4", "3", "0", "1", "3,1")
    info = rank_info()
    assert (info.rank, info.world_size, info.local_rank, info.local_world_size) == (3, 4, 0, 1)
    host, port = info.init_method.removeprefix("tcp://").split(":")
    assert host == "gpu03"
    assert 15_000 <= int(port) < 32_000
    set_srun(monkeypatch, "4", "0", "0", "0", "3,1")
    assert rank_info().init_method == info.init_method, "all tasks compute the same address"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert rank_info().init_method != info.init_method, "a restart gets another port"
    monkeypatch.setenv("MASTER_ADDR", "head")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert rank_info().init_method == "tcp://head:1234"


def test_a_single_task_and_the_shell_of_a_job_are_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    set_srun(monkeypatch, "1", "0", "0", "0", "1")
    assert rank_info() == RankInfo()
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert rank_info() == RankInfo()


def test_torchrun_inside_a_job_step_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    set_srun(monkeypatch, "2", "1", "0", "1", "1(x2)")
    set_torchrun(monkeypatch, "5", "8", "1", "4")
    assert rank_info() == RankInfo(5, 8, 1, 4)


@pytest.mark.parametrize("values", [("2", "2", "0", "0", "2"), ("2", "1", "0", "7", "1(x2)"), ("2", "1", "", "0", "2")])
def test_impossible_srun_rank_is_refused(values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    set_srun(monkeypatch, *values)
    with raises(RecipeError, "bad-rank", f"SLURM_STEP_NUM_TASKS=2, SLURM_PROCID={values[1]}"):
        rank_info()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("a,b", "a"), ("n[1-4]", "n1"), ("gpu[03-05,9],login1", "gpu03"), ("r[1-2]n[01-04,7]", "r1n01")],
)
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
