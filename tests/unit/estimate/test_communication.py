"""What processes send, from formulas written out for cases small enough to do by hand."""

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
LINKS = ("launch.intra_node_gb_per_second=100", "launch.inter_node_gb_per_second=10")
EIGHT = ("launch={on: slurm, nodes: 2, processes_per_node: 4}", *LINKS)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    return shapes_of(save_model(tmp_path_factory.mktemp("models") / "llama", "llama"))


def sent(folder: Path, shapes: Shapes, *changes: str, trained: int = TRAINED, **asked: Any) -> Communication | None:
    recipe = load_recipe(write_recipe(folder, folder), changes)
    told = {"sharding": "none", "passes": 2, "compute_bytes": 2, "on_gpu": True, **asked}
    return estimate_communication(recipe, shapes, trained, **told)


def test_one_process_sends_nothing(tmp_path: Path, shapes: Shapes) -> None:
    assert sent(tmp_path, shapes) == Communication(0, 0)


@pytest.mark.parametrize("known", [(), LINKS[:1], LINKS[1:]])
def test_links_that_are_not_stated_are_not_guessed(tmp_path: Path, shapes: Shapes, known: tuple[str, ...]) -> None:
    assert sent(tmp_path, shapes, EIGHT[0], *known) is None


def test_gradients_are_added_up_over_the_slowest_link(tmp_path: Path, shapes: Shapes) -> None:
    assert sent(tmp_path, shapes, *EIGHT) == Communication(pytest.approx(2 * 7 / 8 * TRAINED * 4 / 10e9), 0)
    four = sent(tmp_path, shapes, "launch={on: torchrun, processes: 4}", LINKS[0])
    assert four == Communication(pytest.approx(2 * 3 / 4 * TRAINED * 4 / 100e9), 0)


def test_layers_in_parts_travel_twice_a_pass(tmp_path: Path, shapes: Shapes) -> None:
    numbers, both = layer_parameter_counts(shapes)
    assert both == numbers, "it has two layers"
    lora = sent(tmp_path, shapes, *EIGHT, sharding="full")
    gradients = 2 * 7 / 8 * TRAINED * 4 / 10e9
    assert lora == Communication(pytest.approx(gradients), pytest.approx(2 * numbers * 7 / 8 * 2 * 2 / 10e9))
    small = sent(tmp_path, shapes, *EIGHT, "tuning={method: qlora}", sharding="full")
    assert small == Communication(pytest.approx(gradients), pytest.approx(2 * numbers * 7 / 8 * 2 * 0.5 / 10e9)), (
        "as kept"
    )
    within = sent(tmp_path, shapes, *EIGHT, sharding="node")
    assert within == Communication(pytest.approx(gradients), pytest.approx(2 * numbers * 3 / 4 * 2 * 2 / 100e9))


def test_gradients_of_layers_in_parts_travel_too(tmp_path: Path, shapes: Shapes) -> None:
    numbers, _ = layer_parameter_counts(shapes)
    tuning, rest = "tuning={method: full}", 2 * 7 / 8 * TRAINED * 4 / 10e9
    full = sent(tmp_path, shapes, *EIGHT, tuning, sharding="full", trained=numbers + TRAINED)
    assert full == Communication(pytest.approx(rest), pytest.approx(2 * numbers * 7 / 8 * (2 * 2 + 4) / 10e9))
    node = sent(tmp_path, shapes, *EIGHT, tuning, sharding="node", trained=numbers + TRAINED)
    copies = 2 * (2 * 1 / 2) * numbers * 4 / 10e9
    assert node == Communication(pytest.approx(rest), pytest.approx(2 * numbers * 3 / 4 * (2 * 2 + 4) / 100e9 + copies))


def test_processors_compute_nothing_while_they_send(tmp_path: Path, shapes: Shapes) -> None:
    gpus, processors = (sent(tmp_path, shapes, *EIGHT, sharding="full", on_gpu=one) for one in (True, False))
    assert gpus is not None
    assert processors == Communication(gpus.waited + gpus.beside, 0)


def test_what_goes_on_beside_is_hidden_at_best() -> None:
    assert Communication(waited=1, beside=2).step_seconds(3) == (4, 6)
    assert Communication(waited=1, beside=5).step_seconds(3) == (6, 9)
