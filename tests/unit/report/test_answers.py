"""Where answers differ, and which lines all prompts share."""

from tunesmith.report.answers import marks, shared_lines


def test_words_that_differ() -> None:
    """Extra words are marked where they are, missing ones where they belong; all else is the prediction itself."""
    found = marks("SELECT id FROM t;", "SELECT name, id FROM users;")
    assert found == [
        ("same", "SELECT"), ("missing", "name,"), ("same", " id FROM"), ("missing", "users"),
        ("same", " "), ("extra", "t"), ("same", ";"),
    ]  # fmt: skip
    assert marks("same", "same") == [("same", "same")]
    assert marks("", "something") == []
    assert marks("wholly other words", "SELECT 1;") == [("extra", "wholly other words")]
    for prediction in ("  a \n b ", "\u3042\u3044\u3046", "x" * 9, "\n", "a b " * 900):
        kept = [text for kind, text in marks(prediction, "a \u3042 b c") if kind != "missing"]
        assert "".join(kept) == prediction


def test_lines_that_all_prompts_share() -> None:
    """Whole lines only, and never so much that two prompts would overlap."""
    assert shared_lines(["a\nb 1\nz", "a\nb 2\nz"]) == ("a\n", "\nz")
    assert shared_lines(["one", "other"]) == ("", "")
    assert shared_lines(["same\n", "same\n"]) == ("", "")
    assert shared_lines(["a\na\n", "a\na\na\n"]) == ("a\na\n", "")
    assert shared_lines([]) == ("", "")
