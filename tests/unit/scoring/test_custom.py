"""Custom metrics: import, calls, and every way in which they can be wrong."""

import os
import sys
from pathlib import Path

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.scoring.custom import CustomMetric, custom_metrics, is_custom, source_files
from tunesmith.scoring.metrics import expand_metrics, score

GOOD = """
import helper_of_words

def words(predictions, references):
    from helper_of_words import count  # imports work during the call, too
    return [count(text) for text in predictions]

words.higher_is_better = False

def same(predictions, references):
    return (prediction in texts for prediction, texts in zip(predictions, references))

class Scorer:
    def __call__(self, predictions, references):
        import numpy
        return numpy.ones(len(predictions), dtype=numpy.float32)

scorer = Scorer()
number = 3
def shown(p, r, rows): return [row["views"] for row in rows]
def shown_or_not(p, r, *, rows=None): return [row["views"] for row in rows]
def third(p, r, other): return [1.0] * len(p)
def one_list(predictions): return [0.0] * len(predictions)
def strings(p, r): return ["1.0"] * len(p)
def nothing(p, r): return None
def short(p, r): return [1.0] * (len(p) - 1)
def nan(p, r): return [1.0, float("nan")]
def huge(p, r): return [1.0, 10 ** 400]
def mean(p, r): return 0.5
def fails(p, r): raise KeyError("colour")
def leaves(p, r): raise SystemExit(0)
def badly_marked(p, r): return [1.0] * len(p)
badly_marked.higher_is_better = "no"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_own_metrics.py").write_text(GOOD)
    (tmp_path / "helper_of_words.py").write_text("def count(text):\n    return len(text.split())\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("from my_package.inner import half\n")
    (tmp_path / "my_package" / "inner.py").write_text("def half(p, r): return [0.5] * len(p)\n")
    return tmp_path


def values(name: str, folder: Path) -> list[float]:
    return score(["a b", "c"], ["a b", ["d", "c"]], [name], folder=folder)[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my_own_metrics:words", [2, 1]),
        ("my_own_metrics.words", [2, 1]),
        ("my_own_metrics:same", [1, 1]),
        ("my_own_metrics:scorer", [1, 1]),
        ("my_package:half", [0.5, 0.5]),
        ("my_package.inner.half", [0.5, 0.5]),
    ],
)
def test_custom_metric_is_imported_and_called(name: str, expected: list[float], folder: Path) -> None:
    assert values(name, folder) == expected
    assert all(type(value) is float for value in values(name, folder))
    assert expand_metrics(["rouge1", name]) == ("rouge1", name)


@pytest.mark.parametrize("name", ["my_own_metrics:shown", "my_own_metrics:shown_or_not"])
def test_custom_metric_with_rows_gets_the_columns(name: str, folder: Path) -> None:
    rows = [{"views": 3, "kind": "a"}, {"views": 5}]
    assert score(["a", "b"], ["a", "b"], [name], folder=folder, rows=rows)[name] == [3, 5]
    assert CustomMetric(name, folder).takes_rows
    assert not CustomMetric("my_own_metrics:words", folder).takes_rows
    with raises(RecipeError, "no-columns", name):
        score(["a", "b"], ["a", "b"], [name], folder=folder)


def test_direction_of_a_custom_metric(folder: Path) -> None:
    assert CustomMetric("my_own_metrics:words", folder).higher_is_better is False
    assert CustomMetric("my_own_metrics:same", folder).higher_is_better is True
    assert set(custom_metrics(["rouge1", "my_package:half"], folder)) == {"my_package:half"}


def test_path_and_own_modules_are_removed_afterwards(folder: Path) -> None:
    path, before = list(sys.path), set(sys.modules)
    values("my_own_metrics:words", folder)
    assert sys.path == path
    assert not {"my_own_metrics", "helper_of_words"} & (set(sys.modules) - before)
    values("my_own_metrics:scorer", folder)
    assert "numpy" in sys.modules


def test_modules_of_the_same_name_in_two_folders(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "my_own_metrics.py").write_text("def words(p, r): return [9.0] * len(p)\n")
    assert values("my_own_metrics:words", folder) == [2, 1]
    assert values("my_own_metrics:words", other) == [9, 9]


def test_edit_within_a_second_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "quickly_edited.py"
    for value in (1.0, 2.0):
        file.write_text(f"def metric(p, r): return [{value}] * len(p)\n")
        os.utime(file, (1_000_000_000, 1_000_000_000))
        assert CustomMetric("quickly_edited:metric", tmp_path)(["a"], ["b"]) == [value]
    assert list(tmp_path.iterdir()) == [file]


def test_library_in_the_recipe_folder_is_not_imported_twice(folder: Path) -> None:
    """A recipe may be in the folder that contains the virtual environment."""
    library = folder / "environment" / "a_library_of_theirs.py"
    library.parent.mkdir()
    library.write_text("")
    (folder / "uses_it.py").write_text("import a_library_of_theirs\ndef f(p, r): return [1.0] * len(p)\n")
    sys.path.append(str(library.parent))
    try:
        values("uses_it:f", folder)
        assert "a_library_of_theirs" in sys.modules
    finally:
        sys.path.remove(str(library.parent))
        sys.modules.pop("a_library_of_theirs", None)


@pytest.mark.parametrize(
    ("name", "code", "named"),
    [
        ("no_such_module:f", "custom-metric-not-found", "`no_such_module`"),
        ("my_package.missing:f", "custom-metric-not-found", "`my_package.missing`"),
        ("my_own_metrics:missing", "custom-metric-not-found", "`missing`"),
        ("my_own_metrics:number", "custom-metric-invalid", "`number`"),
        ("my_own_metrics:one_list", "custom-metric-invalid", "my_own_metrics:one_list"),
        ("my_own_metrics:third", "custom-metric-invalid", "other"),
        ("my_own_metrics:strings", "custom-metric-failed", "'1.0' for row 0"),
        ("my_own_metrics:nothing", "custom-metric-failed", "TypeError"),
        ("my_own_metrics:mean", "custom-metric-failed", "TypeError"),
        ("my_own_metrics:short", "custom-metric-failed", "1 values for 2 rows"),
        ("my_own_metrics:nan", "custom-metric-failed", "nan for row 1"),
        ("my_own_metrics:huge", "custom-metric-failed", "row 1"),
        ("my_own_metrics:fails", "custom-metric-failed", "KeyError: 'colour'"),
        ("my_own_metrics:leaves", "custom-metric-failed", "SystemExit"),
        ("my_own_metrics:badly_marked", "custom-metric-invalid", "higher_is_better = 'no'"),
        ("os:system", "custom-metric-invalid", "os:system"),
        ("math:pi", "custom-metric-invalid", "`pi`"),
    ],
)
def test_invalid_custom_metrics_are_refused(name: str, code: str, named: str, folder: Path) -> None:
    with raises(RecipeError, code, named) as error:
        values(name, folder)
    assert error.value.hint


def test_error_in_a_module_names_its_line(folder: Path) -> None:
    (folder / "broken.py").write_text("x = 1\nimport a_module_that_is_not_there\n")
    (folder / "unwritten.py").write_text("x = 1\ndef f(:\n")
    (folder / "fails.py").write_text("def f(p, r):\n    return [1 / 0]\n")
    for name, line in (("broken", 2), ("unwritten", 2), ("fails", 2)):
        with raises(RecipeError, "custom-metric-failed", where=f"{folder / name}.py:{line}"):
            values(f"{name}:f", folder)


def test_module_cannot_replace_a_library(folder: Path) -> None:
    not_imported = next(name for name in ("colorsys", "tabnanny", "sched", "wave") if name not in sys.modules)
    for name in ("json", not_imported):
        (folder / f"{name}.py").write_text("def f(p, r): return [1.0] * len(p)\n")
        with raises(RecipeError, "custom-metric-shadowed", folder / f"{name}.py"):
            values(f"{name}:f", folder)
    assert values("my_own_metrics:words", folder) == [2, 1]


def test_tunesmith_errors_inside_a_metric_are_passed_on(folder: Path) -> None:
    (folder / "calls_score.py").write_text(
        "from tunesmith import score\ndef f(p, r): return score(p, r[:1], ['rouge1'])\n"
    )
    with raises(DataError, "unequal-lengths"):
        values("calls_score:f", folder)


def test_metrics_cannot_change_the_callers_lists(folder: Path) -> None:
    (folder / "changes.py").write_text("def f(p, r):\n    n = len(p)\n    p.clear()\n    return [1.0] * n\n")
    predictions = ["a", "b"]
    assert score(predictions, ["a", "b"], ["changes:f", "exact_match"], folder=folder)["exact_match"] == [1, 1]


def test_names_of_custom_metrics() -> None:
    assert all(is_custom(name) for name in ("a:f", "a.f", "a.b.c", "a.b:f", "_a:_f", "größe:f"))
    assert not any(
        is_custom(name) for name in ("f", "a:b:c", "a..f", ".f", "a.", ":f", "a b:f", "a-b:f", "1.5", "../a:f")
    )


def test_source_files_of_a_metric(folder: Path) -> None:
    assert folder / "my_own_metrics.py" in source_files("my_own_metrics:words", folder)
    package = {folder / "my_package" / "__init__.py", folder / "my_package" / "inner.py"}
    assert package <= set(source_files("my_package:half", folder))
    assert package <= set(source_files("my_package.inner.half", folder))
    assert source_files("os:system", folder) == []


def test_built_in_name_with_a_dot_is_a_typo() -> None:
    for name, near in (("rouge.L", "rougeL"), ("exact.match", "exact_match"), ("rouge:1", "rouge1")):
        with raises(RecipeError, "unknown-metric", f"`{near}`"):
            expand_metrics([name])
