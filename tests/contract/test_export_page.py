"""The page about exports names tests that exist, and the card in the docs has the sections of today's cards."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REPORTS = 20


def sections(text: str) -> list[str]:
    return re.findall(r"^## .*$", text, re.MULTILINE)


def test_each_reported_fault_has_a_test() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "export.md").read_text(encoding="utf-8"))
    assert len(named) == REPORTS
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).exists() or f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_card_in_the_docs_has_the_sections_of_the_template() -> None:
    template = ROOT / "src" / "tunesmith" / "export" / "card.md.j2"
    card = (DOCS / "model-card.md").read_text(encoding="utf-8")
    assert sections(card) == sections(template.read_text(encoding="utf-8"))
