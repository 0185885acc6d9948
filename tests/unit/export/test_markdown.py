"""Text in Markdown stays text. A Markdown parser reads what is written, as the hub does."""

import pytest
from markdown_it import MarkdownIt

from tunesmith.export.markdown import Markdown, code, escape, fenced, table, without_folders
from tunesmith.report import wording

HOSTILE = (
    "<script>alert(1)</script>", "a | b", "`code` ``` ", "# heading", "- item", "1. item", "![x](y)", "[x](ftp:y)",
    "*a* __b__ ~c~ $d$", "&lt; &amp;", "line\nbreak\r\nand ---", "===", "--- x", "\\", "> quote", "a\u202eb\u2028c",
    "+ x",
)  # fmt: skip


def rendered(markdown: str) -> str:
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_is_a_paragraph_of_that_text(text: str) -> None:
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(escape(text))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    children = tokens[1].children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    shown = "".join(child.content for child in children)
    assert "".join(filter(str.isalnum, shown)) == "".join(filter(str.isalnum, " ".join(wording.visible(text).split())))


@pytest.mark.parametrize("text", HOSTILE)
def test_fence_ends_after_the_text(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(fenced(f"{text}\n```\n````\nend", "python"))
    assert [token.type for token in tokens] == ["fence"]
    assert tokens[0].content.endswith("```\n````\nend\n")


@pytest.mark.parametrize("text", HOSTILE)
def test_cells_keep_their_columns(text: str) -> None:
    html = rendered(table(["a", "b"], [[text, code(text)], ["x", "y"]]))
    assert (html.count("<td"), html.count("<tr>")) == (4, 3)
    assert "<script" not in html


def test_markdown_is_not_escaped_again() -> None:
    assert escape(Markdown("**x**")) == "**x**"
    assert escape(None) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see /srv/ann/runs/x.json, line 3", "see x.json, line 3"),
        ("~/models/base", "base"),
        ("file:///srv/ann/a.csv", "a.csv"),
        (r"C:\Users\ann\a.csv", "a.csv"),
        ("rouge1/rouge2 and 3/4 of https://example.org/x", "rouge1/rouge2 and 3/4 of https://example.org/x"),
    ],
)
def test_paths_lose_their_folders(text: str, expected: str) -> None:
    assert without_folders(text) == expected
