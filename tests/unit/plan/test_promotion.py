"""The plan names the version that a promotion would replace, and why it cannot be compared."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import CHATML, recipe, save_model

from tunesmith.core.files import write_json
from tunesmith.evaluate.incumbent import IncumbentCheck
from tunesmith.fetch.model_folder import CARD
from tunesmith.plan.run_plan import RunPlan, plan_run
from tunesmith.registry.store import Registry

PERPLEXITY = {"metrics": ["perplexity"], "primary": "perplexity"}


def stage(folder: Path) -> None:
    """Make a model version 1 in staging."""
    registry = Registry.default()
    registry.add("tiny", folder, facts={})
    registry.move("tiny", "staging", 1, verdict=None, reason=None)


def plan(tmp_path: Path, tiny: Path, **sections: Any) -> RunPlan:
    return plan_run(recipe(tmp_path, tiny, **{"promote": {"model": "tiny"}, **sections}))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return save_model(tmp_path / "other", "gpt2", template=CHATML)


def test_without_an_incumbent_two_models_answer(tmp_path: Path, tiny: Path) -> None:
    found = plan(tmp_path, tiny)
    assert (found.incumbent, found.workload.incumbent) == (None, None)
    assert found.workload.generated_tokens[1] == 2 * 8 * 8  # models x rows x max_new_tokens


def test_the_incumbent_is_a_third_model_that_answers(tmp_path: Path, tiny: Path, other: Path) -> None:
    stage(other)
    found = plan(tmp_path, tiny)
    assert found.incumbent == IncumbentCheck("tiny@1", "tiny@staging", is_asked=True)
    assert found.workload.generated_tokens[1] == 3 * 8 * 8
    assert "by base, tuned and tiny@1" in str(found)
    assert not any("tiny@1" in warning for warning in found.warnings)
    alone = plan(tmp_path, tiny, promote={"model": "tiny", "against": ["base"]})
    assert (alone.incumbent, alone.workload.generated_tokens[1]) == (None, 2 * 8 * 8)


def test_the_base_is_not_asked_again_as_the_incumbent(tmp_path: Path, tiny: Path) -> None:
    stage(tiny)
    found = plan(tmp_path, tiny)
    assert found.incumbent == IncumbentCheck("tiny@1", "tiny@staging", is_asked=False)
    assert found.workload.generated_tokens[1] == 2 * 8 * 8


def test_an_incumbent_that_cannot_be_compared_is_a_warning(tmp_path: Path, tiny: Path, other: Path) -> None:
    record = {"task": "completion", "prompt": "{question} in {room}", "response": "{answer}"}  # `room` is no column
    write_json(other / CARD, {"data": record})
    stage(other)
    problems = {
        "perplexity": plan(tmp_path, tiny, evaluate=PERPLEXITY),
        "`room`": plan(tmp_path, tiny),
    }
    (Registry.default().root / "models/tiny/1/config.json").unlink()
    problems["config.json"] = plan(tmp_path, tiny)
    for word, found in problems.items():
        assert found.incumbent is not None
        assert word in (found.incumbent.problem or "")
        assert any(word in warning and "tiny@1" in warning for warning in found.warnings)
        assert found.workload.incumbent is None


def test_a_record_of_another_version_is_a_warning(tmp_path: Path, tiny: Path, other: Path) -> None:
    write_json(other / CARD, {"data": {"task": "completion", "prompt": "{question}", "later_key": 1}})
    stage(other)
    found = plan(tmp_path, tiny)
    assert found.incumbent is not None
    assert found.incumbent.problem is not None
