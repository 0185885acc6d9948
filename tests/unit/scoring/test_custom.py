"""Metrics of the user's own: found, called, and every way in which they can be wrong."""

import os
import sys
from pathlib import Path

import pytest

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.scoring.custom import CustomMetric, custom_metrics, is_custom, source_file
from tunesmith.scoring.metrics import expand_metrics, score

GOOD = """
import helper_of_words

def words(predictions, references):
    from helper_of_words import count  # found while it is called, too
    return [count(text) for text in predictions]

words.higher_is_better = False

def same(predictions, references):
    return (one in right for one, right in zip(predictions, references))

class Scorer:
    def __call__(self, predictions, references):
        import numpy
        return numpy.ones(len(predictions), dtype=numpy.float32)

scorer = Scorer()
number = 3
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
def test_a_function_is_found_and_used(name: str, expected: list[float], folder: Path) -> None:
    assert values(name, folder) == expected
    assert all(type(value) is float for value in values(name, folder))
    assert expand_metrics(["rouge1", name]) == ("rouge1", name)


def test_lower_may_be_better(folder: Path) -> None:
    assert CustomMetric("my_own_metrics:words", folder).higher_is_better is False
    assert CustomMetric("my_own_metrics:same", folder).higher_is_better is True
    assert set(custom_metrics(["rouge1", "my_package:half"], folder)) == {"my_package:half"}


def test_nothing_is_left_behind_but_libraries(folder: Path) -> None:
    path, before = list(sys.path), set(sys.modules)
    values("my_own_metrics:words", folder)
    assert sys.path == path
    assert not {"my_own_metrics", "helper_of_words"} & (set(sys.modules) - before)
    values("my_own_metrics:scorer", folder)
    assert "numpy" in sys.modules


def test_two_folders_may_have_a_module_of_one_name(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "my_own_metrics.py").write_text("def words(p, r): return [9.0] * len(p)\n")
    assert values("my_own_metrics:words", folder) == [2, 1]
    assert values("my_own_metrics:words", other) == [9, 9]


def test_an_edit_within_the_second_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "quickly_edited.py"
    for value in (1.0, 2.0):
        file.write_text(f"def metric(p, r): return [{value}] * len(p)\n")
        os.utime(file, (1_000_000_000, 1_000_000_000))
        assert CustomMetric("quickly_edited:metric", tmp_path)(["a"], ["b"]) == [value]
    assert list(tmp_path.iterdir()) == [file]


def test_a_library_beside_the_metric_is_not_imported_twice(folder: Path) -> None:
    """A recipe may lie in the folder that holds the environment."""
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
    ("name", "told"),
    [
        ("no_such_module:f", "there is no module `no_such_module`"),
        ("my_package.missing:f", "there is no module `my_package.missing`"),
        ("my_own_metrics:missing", "`missing` does not exist in the module `my_own_metrics`"),
        ("my_own_metrics:number", "`number` is not a function"),
        ("my_own_metrics:one_list", "cannot be called with two lists"),
        ("my_own_metrics:strings", "gave '1.0' for row 0, not a finite number"),
        ("my_own_metrics:nothing", "raised TypeError"),
        ("my_own_metrics:mean", "raised TypeError"),
        ("my_own_metrics:short", "gave 1 values for 2 rows"),
        ("my_own_metrics:nan", "gave nan for row 1, not a finite number"),
        ("my_own_metrics:huge", "for row 1, not a finite number"),
        ("my_own_metrics:fails", "raised KeyError: 'colour'"),
        ("my_own_metrics:leaves", "raised SystemExit"),
        ("my_own_metrics:badly_marked", "higher_is_better = 'no'"),
        ("os:system", "cannot be called with two lists"),
        ("math:pi", "`pi` is not a function"),
    ],
)
def test_what_is_wrong_is_told(name: str, told: str, folder: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        values(name, folder)
    assert told in refused.value.message
    assert refused.value.hint


def test_a_mistake_in_the_module_is_told_with_its_line(folder: Path) -> None:
    (folder / "broken.py").write_text("x = 1\nimport a_module_that_is_not_there\n")
    (folder / "unwritten.py").write_text("x = 1\ndef f(:\n")
    (folder / "fails.py").write_text("def f(p, r):\n    return [1 / 0]\n")
    for name, line in (("broken", 2), ("unwritten", 2), ("fails", 2)):
        with pytest.raises(RecipeError) as refused:
            values(f"{name}:f", folder)
        assert refused.value.where == f"{folder / name}.py:{line}"


def test_a_file_cannot_take_the_place_of_a_library(folder: Path) -> None:
    absent = next(name for name in ("colorsys", "tabnanny", "sched", "wave") if name not in sys.modules)
    for name in ("json", absent):  # and one of Python's that nothing has imported yet
        (folder / f"{name}.py").write_text("def f(p, r): return [1.0] * len(p)\n")
        with pytest.raises(RecipeError) as refused:
            values(f"{name}:f", folder)
        assert refused.value.hint == "rename your file"
    assert values("my_own_metrics:words", folder) == [2, 1]


def test_an_error_of_ours_is_passed_on(folder: Path) -> None:
    (folder / "asks_us.py").write_text("from tunesmith import score\ndef f(p, r): return score(p, r[:1], ['rouge1'])\n")
    with pytest.raises(DataError):
        values("asks_us:f", folder)


def test_the_lists_are_its_own(folder: Path) -> None:
    (folder / "changes.py").write_text("def f(p, r):\n    n = len(p)\n    p.clear()\n    return [1.0] * n\n")
    predictions = ["a", "b"]
    assert score(predictions, ["a", "b"], ["changes:f", "exact_match"], folder=folder)["exact_match"] == [1, 1]


def test_names_have_a_form() -> None:
    assert all(is_custom(name) for name in ("a:f", "a.f", "a.b.c", "a.b:f", "_a:_f", "größe:f"))
    assert not any(
        is_custom(name) for name in ("f", "a:b:c", "a..f", ".f", "a.", ":f", "a b:f", "a-b:f", "1.5", "../a:f")
    )


def test_the_file_of_a_metric_is_known(folder: Path) -> None:
    assert source_file("my_own_metrics:words", folder) == folder / "my_own_metrics.py"
    assert source_file("my_package:half", folder) == folder / "my_package" / "__init__.py"
    assert source_file("my_package.inner.half", folder) == folder / "my_package" / "inner.py"
    assert source_file("os:system", folder) is None
    assert source_file("my_own_metrics:words", None) is None


def test_a_built_in_name_with_a_dot_is_a_typing_mistake() -> None:
    for name, meant in (("rouge.L", "rougeL"), ("exact.match", "exact_match"), ("rouge:1", "rouge1")):
        with pytest.raises(RecipeError) as refused:
            expand_metrics([name])
        assert f"did you mean `{meant}`?" in refused.value.message
