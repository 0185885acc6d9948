"""The words in which answers differ, and the lines that all prompts share."""

from tunesmith.report.answers import closest_reference, common_lines, diff_words


def test_diff_marks_extra_and_missing_words() -> None:
    """Without the missing words, the segments are the prediction."""
    found = diff_words("SELECT id FROM t;", "SELECT name, id FROM users;")
    assert found == [
        ("same", "SELECT"), ("missing", "name,"), ("same", " id FROM"), ("missing", "users"),
        ("same", " "), ("extra", "t"), ("same", ";"),
    ]  # fmt: skip
    assert closest_reference("a b c", ["x b y", "c b", "a"]) == "c b"
    assert closest_reference("a", []) is None
    assert diff_words("same", "same") == [("same", "same")]
    assert diff_words("", "something") == []
    assert diff_words("wholly other words", "SELECT 1;") == [("extra", "wholly other words")]
    for prediction in ("  a \n b ", "\u3042\u3044\u3046", "x" * 9, "\n", "a b " * 900):
        kept = [text for kind, text in diff_words(prediction, "a \u3042 b c") if kind != "missing"]
        assert "".join(kept) == prediction


def test_common_lines_are_whole_lines_and_do_not_overlap() -> None:
    assert common_lines(["a\nb 1\nz", "a\nb 2\nz"]) == ("a\n", "\nz")
    assert common_lines(["one", "other"]) == ("", "")
    assert common_lines(["same\n", "same\n"]) == ("", "")
    assert common_lines(["a\na\n", "a\na\na\n"]) == ("a\na\n", "")
    assert common_lines([]) == ("", "")
