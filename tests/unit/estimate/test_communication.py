"""Communication per step, compared with formulas written out for cases small enough to compute by hand."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe as write_recipe
from tests.support.tiny import save_model

from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.shapes import Shapes
from tunesmith.estimate.communication import Communication, estimate_communication
from tunesmith.estimate.memory import layer_parameter_counts
from tunesmith.recipe.load import load_recipe

TRAINED = 1000
BANDWIDTHS = ("launch.intra_node_gb_per_second=100", "launch.inter_node_gb_per_second=10")
TWO_NODES = "launch={on: slurm, nodes: 2, processes_per_node: 4}"
EIGHT_RANKS = (TWO_NODES, *BANDWIDTHS)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    return shapes_of(save_model(tmp_path_factory.mktemp("models") / "llama", "llama"))


def communication(
    folder: Path, shapes: Shapes, *changes: str, trained: int = TRAINED, **options: Any
) -> Communication | None:
    recipe = load_recipe(write_recipe(folder, folder), changes)
    settings = {"sharding": "none", "micro_batches": 2, "compute_bytes": 2, "on_gpu": True, **options}
    return estimate_communication(recipe, shapes, trained, **settings)


def test_a_single_rank_does_not_communicate(tmp_path: Path, shapes: Shapes) -> None:
    assert communication(tmp_path, shapes) == Communication(0, 0)


@pytest.mark.parametrize("stated", [(), BANDWIDTHS[:1], BANDWIDTHS[1:]])
def test_communication_is_unknown_without_both_bandwidths(
    tmp_path: Path, shapes: Shapes, stated: tuple[str, ...]
) -> None:
    assert communication(tmp_path, shapes, TWO_NODES, *stated) is None


def test_gradient_all_reduce_uses_the_slowest_link(tmp_path: Path, shapes: Shapes) -> None:
    eight = communication(tmp_path, shapes, *EIGHT_RANKS)
    assert eight == Communication(pytest.approx(2 * 7 / 8 * TRAINED * 4 / 10e9), 0)
    four = communication(tmp_path, shapes, "launch={on: torchrun, processes: 4}", BANDWIDTHS[0])
    assert four == Communication(pytest.approx(2 * 3 / 4 * TRAINED * 4 / 100e9), 0)


def test_sharded_layers_are_gathered_twice_per_micro_batch(tmp_path: Path, shapes: Shapes) -> None:
    layers, gathered = layer_parameter_counts(shapes)
    assert gathered == layers, "the model has two layers"
    lora = communication(tmp_path, shapes, *EIGHT_RANKS, sharding="full")
    gradients = 2 * 7 / 8 * TRAINED * 4 / 10e9
    assert lora == Communication(pytest.approx(gradients), pytest.approx(2 * layers * 7 / 8 * 2 * 2 / 10e9))
    qlora = communication(tmp_path, shapes, *EIGHT_RANKS, "tuning={method: qlora}", sharding="full")
    quantized = 2 * layers * 7 / 8 * 2 * 0.5 / 10e9
    assert qlora == Communication(pytest.approx(gradients), pytest.approx(quantized)), "gathered in 4 bits"
    node = communication(tmp_path, shapes, *EIGHT_RANKS, sharding="node")
    assert node == Communication(pytest.approx(gradients), pytest.approx(2 * layers * 3 / 4 * 2 * 2 / 100e9))


def test_gradients_of_sharded_layers_are_reduce_scattered(tmp_path: Path, shapes: Shapes) -> None:
    layers, _ = layer_parameter_counts(shapes)
    tuning, replicated = "tuning={method: full}", 2 * 7 / 8 * TRAINED * 4 / 10e9
    full = communication(tmp_path, shapes, *EIGHT_RANKS, tuning, sharding="full", trained=layers + TRAINED)
    assert full == Communication(pytest.approx(replicated), pytest.approx(2 * layers * 7 / 8 * (2 * 2 + 4) / 10e9))
    node = communication(tmp_path, shapes, *EIGHT_RANKS, tuning, sharding="node", trained=layers + TRAINED)
    within = 2 * layers * 3 / 4 * (2 * 2 + 4) / 100e9
    between = 2 * (2 * 1 / 2) * layers * 4 / 10e9
    assert node == Communication(pytest.approx(replicated), pytest.approx(within + between))


def test_cpus_do_not_overlap_communication_with_compute(tmp_path: Path, shapes: Shapes) -> None:
    gpu, cpu = (
        communication(tmp_path, shapes, *EIGHT_RANKS, sharding="full", on_gpu=on_gpu) for on_gpu in (True, False)
    )
    assert gpu is not None
    assert cpu == Communication(gpu.exposed + gpu.overlappable, 0)


def test_step_seconds_with_and_without_overlap() -> None:
    assert Communication(exposed=1, overlappable=2).step_seconds(3) == (4, 6)
    assert Communication(exposed=1, overlappable=5).step_seconds(3) == (6, 9)


def test_muon_gathers_each_matrix_once_more_per_step(tmp_path: Path, shapes: Shapes) -> None:
    layers, _ = layer_parameter_counts(shapes)
    settings = (*EIGHT_RANKS, "tuning={method: full}")
    options: dict[str, Any] = {"sharding": "full", "trained": shapes.parameters}
    adamw = communication(tmp_path, shapes, *settings, **options)
    muon = communication(tmp_path, shapes, *settings, "train.optimizer=muon", **options)
    assert adamw is not None
    assert muon is not None
    assert muon.exposed - adamw.exposed == pytest.approx(layers * 7 / 8 * 4 / 10e9)
    assert muon.overlappable == adamw.overlappable
