"""Answers are scored by metrics that were loaded once; failed answers have no score."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.files import digest_file, write_json
from tunesmith.core.rundir import RunDir
from tunesmith.inference.metric_inputs import scoring_inputs
from tunesmith.inference.scorer import Scorer
from tunesmith.recipe.schema import Recipe

ANSWERS = [
    {"prediction": "", "reference": "", "error": "too long"},
    {"prediction": "", "reference": "", "error": None},
    {"prediction": "x", "reference": "x", "error": None},
]


def recipe_with(database: str | None = None) -> Recipe:
    return Recipe.model_validate({
        "name": "x", "model": {"base": "org/model", "precision": "fp32"},
        "data": {"task": "completion", "prompt": "{a}", "response": "{b}", "source": {"file": "x.csv"}},
        "tuning": {"method": "full"}, "train": {"learning_rate": 1e-4},
        "evaluate": {"metrics": ["exact_match"], "primary": "exact_match", "database": database},
    })  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    write_json(made.environment, {"recipe_folder": ".."})
    return made


def scorer(run: RunDir, *names: str, database: str | None = None) -> Scorer:
    return Scorer(names, recipe_with(database), run, stage="train")


def test_a_failed_answer_has_no_score(run: RunDir) -> None:
    """An empty prediction would match an empty reference, and a wrong answer is not a failure."""
    assert scorer(run, "exact_match").score("exact_match", ANSWERS) == [None, 1.0, 1.0]
    assert scorer(run, "exact_match").score("exact_match", ANSWERS[:1]) == [None]


def test_metric_groups_are_expanded(run: RunDir) -> None:
    made = scorer(run, "rouge", "rougeL")
    assert made.names == ("rouge1", "rouge2", "rougeL", "rougeLsum")
    assert all(len(made.score(name, ANSWERS)) == 3 for name in made.names)
    assert made.lower_is_better == []


def test_custom_metrics_get_no_failed_answers_and_state_their_direction(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "brief.py").write_text(
        "def words(p, r):\n    return [7.0 if not one else len(one.split()) for one in p]\n"
        "words.higher_is_better = False\n"
    )
    made = scorer(run, "exact_match", "brief:words")
    assert made.score("brief:words", ANSWERS) == [None, 7.0, 1.0]
    assert made.lower_is_better == ["brief:words"]
    with raises(RecipeError, "custom-metric-not-found", "absent"):
        scorer(run, "absent:words")


def test_the_generated_database_is_written_to_the_folder_of_the_stage(run: RunDir) -> None:
    rows: list[dict[str, Any]] = [
        {"prediction": f"SELECT {one} FROM customers", "reference": "SELECT count(*) FROM customers", "error": None}
        for one in ("count(id)", "max(id) + 1")
    ]
    execution = scorer(run, "execution", database="generated:shop-sql")
    assert execution.score("execution", rows) == [1.0, 0.0]
    assert [path.relative_to(run.path).as_posix() for path in run.path.rglob("*.sqlite")] == ["train/shop.sqlite"]


def test_only_the_execution_metric_needs_the_database(run: RunDir) -> None:
    scorer(run, "exact_match", database="absent.db")
    assert scoring_inputs(["exact_match"], recipe_with("absent.db"), run) == {}
    with pytest.raises(DataError) as caught:
        scorer(run, "execution", database="absent.db")
    assert "absent.db" in str(caught.value.where)
    with pytest.raises(DataError):
        scoring_inputs(["execution"], recipe_with("absent.db"), run)


def test_scoring_inputs_are_the_files_that_the_metrics_read(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(p, r): return [0] * len(p)\n")
    (tmp_path / "x.db").write_bytes(b"rows")
    recipe = recipe_with("x.db")
    assert scoring_inputs(["exact_match"], recipe, run) == {}
    assert scoring_inputs(["execution", "mine:f", "json.loads"], recipe, run) == {
        "own_metrics": {"mine:f": digest_file(tmp_path / "mine.py"), "json.loads": None},
        "database": digest_file(tmp_path / "x.db"),
    }
    generated = recipe_with("generated:shop-sql")
    assert scoring_inputs(["execution"], generated, run) == {"database": "generated:shop-sql"}
