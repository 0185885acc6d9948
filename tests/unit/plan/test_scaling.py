"""Estimates of a run on several processes and nodes."""

import json
from pathlib import Path

import pytest

from tunesmith.core.errors import DoesNotFit
from tunesmith.estimate.hardware import Hardware
from tunesmith.estimate.throughput import Speed
from tunesmith.plan import run_plan, scaling
from tunesmith.plan.run_plan import plan_run

SLURM = ["launch.on=slurm", "launch.nodes=2"]
pytestmark = pytest.mark.usefixtures("no_slurm")


def set_speed(speed: Speed | None, monkeypatch: pytest.MonkeyPatch, *, utilization: float = 1.0) -> None:
    """Fix the recorded speed of this machine, and how evenly the rows of a step are divided among ranks."""
    monkeypatch.setattr(run_plan, "load_speed", lambda *_: speed)
    monkeypatch.setattr(scaling, "estimate_rank_utilization", lambda *_: utilization)


def test_slurm_nodes_have_the_memory_that_the_recipe_states(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "detect_hardware", lambda: Hardware("cpu", has_bf16=False, memory_gib=0.001))
    with pytest.raises(DoesNotFit):
        plan_run(recipe).require_fit()
    gpus = [*SLURM, "launch.gpus_per_node=4"]
    unknown = plan_run(recipe, gpus)
    unknown.require_fit()
    assert unknown.cluster.memory_available is None
    assert (unknown.cluster.nodes, unknown.cluster.processes) == (2, 8)
    json.dumps(unknown.to_json(), allow_nan=False)
    assert plan_run(recipe, [*gpus, "launch.gpu_memory_gib=80"]).cluster.memory_available == 80
    shared = plan_run(recipe, [*SLURM, "launch.processes_per_node=2", "launch.memory_gib_per_node=64"])
    assert shared.cluster.memory_available == 32


def test_torchrun_processes_share_the_memory_of_the_machine(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "detect_hardware", lambda: Hardware("cpu", has_bf16=False, memory_gib=12.0))
    assert plan_run(recipe, ["launch={on: torchrun, processes: 4}"]).cluster.memory_available == 3


def test_training_time_is_divided_by_the_processes_and_communication_is_added(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speed(Speed(100.0, cores=4), monkeypatch, utilization=0.8)
    monkeypatch.setattr(scaling, "available_cores", lambda: 4)
    one, two = plan_run(recipe), plan_run(recipe, SLURM)
    assert one.seconds == pytest.approx(2 * [one.training_tokens / 80])
    assert two.seconds == pytest.approx([seconds / 2 for seconds in one.seconds or ()])
    narrow = plan_run(recipe, [*SLURM, "launch.cpus_per_process=1"])
    assert narrow.cluster.tokens_per_second == pytest.approx(25), "a quarter of the measured cores"
    linked = plan_run(recipe, [*SLURM, "launch.inter_node_gb_per_second=1e-3"])
    assert linked.seconds is not None
    assert linked.cluster.communication is not None
    communication = linked.steps.total_steps * linked.cluster.communication.exposed
    assert linked.seconds[0] == pytest.approx(two.seconds[0] + communication)
    assert linked.to_json()["seconds_at_worst"] == linked.seconds[1]


def test_the_optimizer_update_is_divided_only_if_layers_are_sharded(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speed(Speed(100.0, cores=1, update_seconds=0.5), monkeypatch)
    full = "tuning={method: full}"
    one, two, sharded = (plan_run(recipe, [full, *launch]) for launch in ((), SLURM, [*SLURM, "launch.sharding=full"]))
    step = one.training_tokens / one.steps.total_steps
    assert one.cluster.tokens_per_second == pytest.approx(step / (step / 100 + 0.5))
    assert two.cluster.total_tokens_per_second == pytest.approx(2 * [step / (step / 200 + 0.5)])
    assert two.cluster.total_tokens_per_second is not None
    assert sharded.cluster.total_tokens_per_second is not None
    at_most = step / (step / 200 + 0.25)  # embeddings are not sharded
    assert two.cluster.total_tokens_per_second[0] < sharded.cluster.total_tokens_per_second[0] < at_most


def test_scaling_covers_powers_of_two_up_to_four_times_the_nodes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_speed(None, monkeypatch)
    assert plan_run(recipe, SLURM).scaling == [], "no speed was measured"
    set_speed(Speed(100.0), monkeypatch)
    assert plan_run(recipe).scaling == []
    three = [*SLURM, "launch.nodes=3", "launch.inter_node_gb_per_second=1e-3"]
    sizes = plan_run(recipe, three).scaling
    assert [size["nodes"] for size in sizes] == [1, 2, 3, 4, 8]
    speeds = [size["tokens_per_second"] for size in sizes]
    assert speeds[0] == pytest.approx((100, 100))
    assert all(low <= high < 100 * size["nodes"] for (low, high), size in zip(speeds[1:], sizes[1:], strict=True))
    small = plan_run(recipe, [*three, "launch.processes_per_node=4", "launch.memory_gib_per_node=1"])
    assert not any(size["fits"] for size in small.scaling)
    monkeypatch.setattr(scaling, "available_cores", lambda: 2)
    processes = plan_run(recipe, ["launch={on: torchrun, processes: 2}"]).scaling
    assert [(size["processes"], size["tokens_per_second"][0]) for size in processes] == [
        (1, pytest.approx(100)), (2, pytest.approx(200)),
    ]  # fmt: skip
    assert processes[-1]["at_best"]


def test_sharding_is_planned_as_the_recipe_states_it(recipe: Path) -> None:
    full = [*SLURM, "tuning={method: full}", "launch.gpus_per_node=4", "launch.gpu_memory_gib=80"]
    whole = plan_run(recipe, full)
    assert whole.cluster.sharding == "none"
    for sharding in ("full", "node"):
        sharded = plan_run(recipe, [*full, f"launch.sharding={sharding}"])
        assert sharded.cluster.sharding == sharding
        assert sharded.cluster.memory.optimizer < whole.cluster.memory.optimizer
