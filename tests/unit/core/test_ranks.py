"""A process knows its place from what started it, and says so where that cannot be."""

import pytest

from tunesmith.core.errors import RecipeError
from tunesmith.core.ranks import Place, place

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
        ((None, None, None, None), Place()),
        ((None, "4", None, None), Place()),  # of a scheduler that tells how many there are, and did not start this one
        (("0", "1", "0", "1"), Place()),
        (("5", "8", "1", "4"), Place(5, 8, 1, 4)),
    ],
)
def test_places(values: tuple[str | None, ...], found: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, *values)
    assert place() == found
    assert place().is_first == (found.rank == 0)


@pytest.mark.parametrize(
    "values", [("2", "2", "0", "1"), ("one", "2", "0", "1"), ("0", "2", "0", "4"), ("-1", "2", "0", "1")]
)
def test_places_that_cannot_be(values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, *values)
    with pytest.raises(RecipeError, match=f"RANK={values[0]}, WORLD_SIZE={values[1]}"):
        place()
