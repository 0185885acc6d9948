"""Cells are found by the name of a column or by a path into it, also through text that is JSON."""

from typing import Any

import pytest

from tunesmith.tasks.cells import MISSING, InvalidJson, find_cell, has_cell, nested_paths, parse_json

ROW = {
    "t": {"en": "x", "a.b": {"c": 1}, "none": None},
    "t.en": "exact",
    "answers": {"text": ["first", "second"], "start": []},
    "json": ' [{"n": 1.50, "inner": "{\\"k\\": true}"}]',
    "plain": "no JSON",
    "broken": '{"a": 1',
    "0": "zero",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("0", "zero"),
        ("t.en", "exact"),
        ("t.a.b.c", 1),
        ("t.none", None),
        ("t.none.deeper", None),
        ("answers.text.1", "second"),
        ("answers.text.2", None),
        ("answers.start.0", None),
        ("json.0.inner.k", True),
        ("t.fr", MISSING),
        ("t.a", MISSING),
        ("answers.text.en", MISSING),
        ("answers.text.-1", MISSING),
        ("plain.x", MISSING),
        ("u.en", MISSING),
        ("u", MISSING),
    ],
)
def test_path_leads_to_a_value(path: str, value: Any) -> None:
    assert find_cell(ROW, path) is value or find_cell(ROW, path) == value
    is_cut_short = path in ("t.none.deeper", "answers.text.2", "answers.start.0")
    assert has_cell(ROW, path) is (value is not MISSING and not is_cut_short)


def test_numbers_in_json_text_keep_their_spelling() -> None:
    assert str(find_cell(ROW, "json.0.n")) == "1.50"


@pytest.mark.parametrize(
    "text", ['{"a": 1', '{"a": 1} x', '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000, '{"a": "\\ud800"}', "[1,]"]
)
def test_broken_json_names_its_column(text: str) -> None:
    for row, path in (({"c": text}, "c.a"), ({"c": {"d": text}}, "c.d.a.b")):
        with pytest.raises(InvalidJson) as caught:
            find_cell(row, path)
        assert caught.value.column == ("c" if path == "c.a" else "c.d")
        assert not has_cell(row, path)
    with pytest.raises(InvalidJson):
        parse_json(text, "c")


def test_nested_paths_of_a_row() -> None:
    row = {"t": {"en": "x"}, "m": [{"role": "user"}, {"name": "y"}], "j": '{"k": [1]}', "s": "x"}
    assert list(nested_paths(row)) == ["t", "t.en", "m", "m.0", "m.0.role", "j", "j.k", "j.k.0", "s"]
