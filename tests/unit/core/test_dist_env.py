"""A process knows its place from what started it, and says so where that cannot be."""

import pytest

from tunesmith.core.dist_env import RankInfo, first_host, rank_info
from tunesmith.core.errors import RecipeError

OF_SRUN = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def told(monkeypatch: pytest.MonkeyPatch, *values: str | None) -> None:
    for name, value in zip(NAMES, values, strict=True):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((None, None, None, None), RankInfo()),
        (
            (None, "4", None, None),
            RankInfo(),
        ),  # of a scheduler that tells how many there are, and did not start this one
        (("0", "1", "0", "1"), RankInfo()),
        (("5", "8", "1", "4"), RankInfo(5, 8, 1, 4)),
    ],
)
def test_places(values: tuple[str | None, ...], found: RankInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, *values)
    assert rank_info() == found
    assert rank_info().is_rank0 == (found.rank == 0)


@pytest.mark.parametrize(
    "values", [("2", "2", "0", "1"), ("one", "2", "0", "1"), ("0", "2", "0", "4"), ("-1", "2", "0", "1")]
)
def test_places_that_cannot_be(values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, *values)
    with pytest.raises(RecipeError, match=f"RANK={values[0]}, WORLD_SIZE={values[1]}"):
        rank_info()


def step(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    """Stand where srun would have put us."""
    told(monkeypatch, None, None, None, None)
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(OF_SRUN, values, strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[03-04]")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_STEP_ID", "0")


def test_places_in_a_step_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch, "4", "3", "0", "1", "3,1")
    found = rank_info()
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (3, 4, 0, 1)
    host, port = found.init_method.removeprefix("tcp://").split(":")
    assert host == "gpu03"
    assert 15_000 <= int(port) < 32_000
    step(monkeypatch, "4", "0", "0", "0", "3,1")
    assert rank_info().init_method == found.init_method, "all come to the same place"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert rank_info().init_method != found.init_method, "and to another in the next turn"
    monkeypatch.setenv("MASTER_ADDR", "head")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert rank_info().init_method == "tcp://head:1234"


def test_one_task_and_the_shell_of_a_job_are_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch, "1", "0", "0", "0", "1")
    assert rank_info() == RankInfo()
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert rank_info() == RankInfo()


def test_torchrun_within_a_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch, "2", "1", "0", "1", "1(x2)")
    told(monkeypatch, "5", "8", "1", "4")
    assert rank_info() == RankInfo(5, 8, 1, 4)


@pytest.mark.parametrize("values", [("2", "2", "0", "0", "2"), ("2", "1", "0", "7", "1(x2)"), ("2", "1", "", "0", "2")])
def test_steps_that_cannot_be(values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch, *values)
    with pytest.raises(RecipeError, match=f"SLURM_STEP_NUM_TASKS=2, SLURM_PROCID={values[1]}"):
        rank_info()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("a,b", "a"), ("n[1-4]", "n1"), ("gpu[03-05,9],login1", "gpu03"), ("r[1-2]n[01-04,7]", "r1n01")],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
