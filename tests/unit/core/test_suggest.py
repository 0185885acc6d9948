"""Suggestions for misspelt names."""

from tunesmith.core.suggest import closest, did_you_mean


def test_the_closest_name_is_suggested_and_all_names_if_none_is_close() -> None:
    assert closest("tset", ["train", "valid", "test"]) == "test"
    assert closest("xyz", ["train", "valid", "test"]) is None
    assert "`test`" in did_you_mean("tset", ["train", "test"])
    assert "train, test" in did_you_mean("xyz", ["train", "test"])
