"""Tokens of rows as text and as HTML: trained tokens are marked, and terminals and browsers execute nothing in them."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tunesmith.core.files import write_text
from tunesmith.report.tokens import render_text, write_html

HOSTILE = "a\tb <|im_end|> \x1b[31mred\x07 </span><script>alert(1)</script> \u202egnp"


def token(text: str, *, trained: bool = False, special: bool = False) -> dict[str, Any]:
    return {"text": text, "id": 1, "trained": trained, "special": special}


def sample(*tokens: dict[str, Any], **other: Any) -> dict[str, Any]:
    facts = {"split": "train", "row": 3, "where": "rows.jsonl:3", "block": None, "id": "x", "status": "kept"}
    facts |= {"part": "row", "prompt_tokens": 2}
    return {**facts, "tokens": list(tokens), **other}


def test_text_without_colour_marks_trained_tokens() -> None:
    tokens = [token("<s>", special=True), token("Say"), token(" it\n"), token("yes", trained=True)]
    text = render_text([sample(*tokens, token("</s>", trained=True, special=True))], colour=False)
    assert text.splitlines()[2:] == [
        "train row 3 (rows.jsonl:3)  5 tokens, 2 trained, prompt 2",
        "<s>\u00a6Say\u00a6 it\u21b5",
        "\u27e6yes\u00a6</s>\u27e7",
    ]
    assert "\x1b" not in text


def test_text_in_colour_marks_trained_and_special_tokens() -> None:
    text = render_text([sample(token("a"), token("b", trained=True), token("c", special=True))], colour=True)
    assert text.split("\n")[1] == "a\x1b[1;32;4mb\x1b[0m\x1b[2mc\x1b[0m"


def test_control_characters_of_rows_do_not_reach_the_terminal() -> None:
    rows = [sample(token(HOSTILE, trained=True), where="\x1b]0;title\x07.csv:1")]
    plain = render_text(rows, colour=False)
    assert not set(plain) & {"\x1b", "\x07", "\u202e"}
    assert "\u241b[31mred\u2407" in plain
    assert "a\u2192\tb" in plain
    assert (
        render_text(rows, colour=True).replace("\x1b[1m", "").replace("\x1b[1;32m", "").count("\x1b") == 2
    )  # two resets


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        self.open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        classes = dict(attrs).get("class") or ""
        self.open = classes if tag == "span" and "title" in dict(attrs) else ""

    def handle_data(self, data: str) -> None:
        if self.open:
            self.tokens.append((self.open, data))
            self.open = ""


def test_html_shows_every_token_and_escapes_scripts(tmp_path: Path) -> None:
    tokens = [token("plain"), token(HOSTILE, trained=True), token("<|im_end|>", trained=True, special=True)]
    file = tmp_path / "new" / "rows.html"
    write_html([sample(*tokens), sample(token("second"))], file)
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    assert [kind for kind, _ in page.tokens] == ["k", "k t", "k t s", "k"]
    assert [text for _, text in page.tokens][::3] == ["plain", "second"]
    assert "</span><script>alert(1)</script>" in page.tokens[1][1]
    assert "script" not in page.tags
    assert page.tags.count("details") == 2
    assert "\x1b" not in file.read_text(encoding="utf-8")


def test_html_shows_all_rows(tmp_path: Path) -> None:
    write_html([sample(token(str(i))) for i in range(30)], tmp_path / "rows.html")
    assert (tmp_path / "rows.html").read_text(encoding="utf-8").count("<details") == 30


def test_html_of_a_very_long_row_counts_the_tokens_left_out(tmp_path: Path) -> None:
    write_html([sample(*[token("x")] * 5000)], tmp_path / "rows.html")
    assert "3800 more tokens" in (tmp_path / "rows.html").read_text(encoding="utf-8")


def test_the_html_file_is_replaced_atomically(tmp_path: Path) -> None:
    write_text(tmp_path / "rows.html", "old")
    write_html([sample(token("new"))], tmp_path / "rows.html")
    assert "old" not in (tmp_path / "rows.html").read_text(encoding="utf-8")[:20]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.html"]
