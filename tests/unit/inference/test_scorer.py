"""Answers are scored by metrics that were found once; what failed has no score."""

from pathlib import Path
from typing import Any

import pytest

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


def test_a_row_that_failed_has_no_score(run: RunDir) -> None:
    """An empty prediction would match an empty reference, and a wrong answer is not a failure."""
    assert scorer(run, "exact_match").score("exact_match", ANSWERS) == [None, 1.0, 1.0]
    assert scorer(run, "exact_match").score("exact_match", ANSWERS[:1]) == [None]


def test_groups_are_expanded_and_every_member_is_scored(run: RunDir) -> None:
    made = scorer(run, "rouge", "rougeL")
    assert made.names == ("rouge1", "rouge2", "rougeL", "rougeLsum")
    assert all(len(made.score(name, ANSWERS)) == 3 for name in made.names)
    assert made.lower_is_better == []


def test_a_metric_of_one_s_own_does_not_see_what_failed_and_says_which_way_is_better(
    run: RunDir, tmp_path: Path
) -> None:
    (tmp_path / "brief.py").write_text(
        "def words(p, r):\n    return [7.0 if not one else len(one.split()) for one in p]\n"
        "words.higher_is_better = False\n"
    )
    made = scorer(run, "exact_match", "brief:words")
    assert made.score("brief:words", ANSWERS) == [None, 7.0, 1.0]
    assert made.lower_is_better == ["brief:words"]
    with pytest.raises(RecipeError, match="no module `absent`"):
        scorer(run, "absent:words")


def test_the_generated_database_lies_in_the_folder_of_the_stage_that_scores(run: RunDir) -> None:
    rows: list[dict[str, Any]] = [
        {"prediction": f"SELECT {one} FROM customers", "reference": "SELECT count(*) FROM customers", "error": None}
        for one in ("count(id)", "max(id) + 1")
    ]
    asked = scorer(run, "execution", database="generated:shop-sql")
    assert asked.score("execution", rows) == [1.0, 0.0]
    assert [path.relative_to(run.path).as_posix() for path in run.path.rglob("*.sqlite")] == ["train/shop.sqlite"]


def test_a_database_is_asked_for_only_by_what_reads_it(run: RunDir) -> None:
    scorer(run, "exact_match", database="absent.db")
    assert scoring_inputs(["exact_match"], recipe_with("absent.db"), run) == {}
    with pytest.raises(DataError, match="no such database"):
        scorer(run, "execution", database="absent.db")
    with pytest.raises(DataError, match="no such database"):
        scoring_inputs(["execution"], recipe_with("absent.db"), run)


def test_inputs_are_what_the_metrics_read_and_no_more(run: RunDir, tmp_path: Path) -> None:
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
