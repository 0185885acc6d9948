"""Prose in code and documentation uses the field's words: rates of a private voice stay as low as in other projects."""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.sources import ROOT

# A phrasing -> (pattern, limit per 1,000 words): one and a half times the highest rate in nanochat, torchtitan, httpx,
# llm and TRL in 2026. A high rate points at sentences to rewrite from their meaning.
PHRASINGS = {
    "where, instead of if or when": (r"\bwhere\b", 1.2),
    "say, of things": (r"\b(?:say|says|said|saying)\b", 0.5),
    "tell, of things": (r"(?<!cannot )\b(?:tell|tells|told|telling)\b", 0.3),  # "cannot tell" is a verdict
    "stand, lie, of things": (r"\b(?:stands?|stood|lies?|lay)\b", 0.3),
    "beside": (r"\bbeside\b", 0.2),
    "go on, instead of continue": (r"\b(?:go|goes|going|went) on\b", 0.2),
    "nobody, somebody": (r"\b(?:nobody|somebody)\b", 0.1),
    "so many, so much": (r"\bso (?:many|much)\b", 0.2),
    "anew, by way of, all the same": (r"\b(?:anew|by way of|all the same)\b", 0.1),
    "have to, instead of must": (r"\b(?:has|have|had) to\b", 0.8),
    "of its own, by itself": (r"\b(?:of its own|of their own|by itself|by themselves)\b", 0.3),
    "what, as a noun": (r"(?:^|[.:;,(] ?)what\b", 1.0),
}
PLACES = {
    "package": ("src",),
    "tests": ("tests", "benchmarks", "scripts", "recipes"),
    "documentation": ("docs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
}


def prose(path: Path) -> Iterator[str]:
    """Yield the docstrings and comments of a Python file, or the text of a Markdown page without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield re.sub(r"`[^`]*`", " ", re.sub(r"```.*?```", " ", text, flags=re.DOTALL))
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from (token.string.lstrip("#") for token in tokens if token.type == tokenize.COMMENT)


def rates(texts: list[str]) -> dict[str, float]:
    """Return how often each phrasing occurs per 1,000 words."""
    words = sum(len(re.findall(r"[A-Za-z']+", text)) for text in texts)
    hits = Counter(
        {
            name: sum(len(re.findall(pattern, text, re.IGNORECASE | re.MULTILINE)) for text in texts)
            for name, (pattern, _) in PHRASINGS.items()
        }
    )
    return {name: 1000 * hits[name] / max(words, 1) for name in PHRASINGS}


@pytest.mark.parametrize("place", PLACES)
def test_prose_uses_the_words_of_the_field(place: str) -> None:
    roots = [ROOT / name for name in PLACES[place]]
    paths = [p for root in roots for p in (root, *sorted(root.rglob("*"))) if p.suffix in (".py", ".md")]
    found = rates([text for path in paths for text in prose(path)])
    assert {name: round(rate, 2) for name, rate in found.items() if rate > PHRASINGS[name][1]} == {}


def test_the_rates_count_prose_and_not_code(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text('"""Where it says: what."""\nwhere = "somebody said"  # it stands beside\n')
    (tmp_path / "x.md").write_text("Nobody `beside`.\n```\nbeside\n```\n")
    found = rates([text for name in ("x.py", "x.md") for text in prose(tmp_path / name)])
    counted = {name for name, rate in found.items() if rate}
    assert counted == {"where, instead of if or when", "say, of things", "what, as a noun", "stand, lie, of things",
                       "beside", "nobody, somebody"}  # fmt: skip
    assert found["beside"] == pytest.approx(1000 / 8)
