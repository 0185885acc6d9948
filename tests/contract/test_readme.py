"""The commands, scripts, files and links in README and docs exist."""

import re
from pathlib import Path

import pytest
from tests.contract.sources import PACKAGE, ROOT

from tunesmith.cli import app

README = ROOT / "README.md"
PAGES = sorted({README, *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")})

FENCE = re.compile(r"^( *)(```+|~~~+) *(\w*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(`+)(.+?)\1")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)>\"]+?)>?(?:\s+\"[^\"]*\")?\s*\)|(?:src|href)=\"([^\"]+)\"")
SUBCOMMAND = re.compile(r"(?<!from )(?<!import )(?<!\w)tunesmith +([a-z][a-z-]*)")
SHELLS = ("", "bash", "sh", "shell", "console")


def commands(text: str) -> list[str]:
    """Return the command lines of the shell blocks, in order."""
    lines = [line for _, _, language, body in FENCE.findall(text) if language in SHELLS for line in body.splitlines()]
    typed = [line.strip().removeprefix("$ ") for line in lines]
    return [line for line in typed if line and not line.startswith("#")]


def subcommands(text: str) -> set[str]:
    """Return the words that follow `tunesmith` in code."""
    code = [body for *_, body in FENCE.findall(text)] + [body for _, body in SPAN.findall(FENCE.sub("", text))]
    return {name for part in code for name in SUBCOMMAND.findall(part)}


def links(text: str) -> list[str]:
    """Return the relative links outside code."""
    prose = SPAN.sub("", FENCE.sub("", text))
    found = [one or other for one, other in LINK.findall(prose)]
    return [link for link in found if not re.match(r"[a-z][a-z0-9+.-]*:|//", link)]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as code hosts name them."""
    titles = re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", text), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", title.replace("`", "")).lower().replace(" ", "-") for title in titles]
    return set(words)


def missing_files(text: str) -> set[str]:
    """Return the Python files in code spans that exist neither in the repository nor in the package."""
    named = {
        name
        for _, span in SPAN.findall(FENCE.sub("", text))
        for name in re.findall(r"^[a-z0-9_/]+/[a-z0-9_]+\.py", span)
    }
    return {name for name in named if not ((ROOT / name).exists() or (PACKAGE / name).exists())}


def broken(page: Path, text: str) -> list[str]:
    """Return the broken links of a page."""
    found = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            found.append(link)
        elif anchor and target.suffix == ".md":
            there = anchors(text if target == page else target.read_text(encoding="utf-8"))
            found += [link] if anchor not in there else []
    return found


def test_the_first_two_commands_are_the_demo_and_the_tests() -> None:
    first = [line.split()[0] for line in commands(README.read_text(encoding="utf-8"))[:2]]
    assert first == ["./scripts/demo", "./scripts/test"]


def test_the_readme_is_among_the_pages() -> None:
    assert README.exists()
    assert len(PAGES) > 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_scripts_files_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert subcommands(text) - set(app) == set()
    assert broken(page, text) == []
    assert missing_files(text) == set()
    for line in commands(text):
        script = line.split()[0]
        if script.startswith(("./", "scripts/", ".venv/bin/python")) and "/" in script:
            assert (ROOT / script).exists(), line


def test_the_rules_find_counter_examples() -> None:
    text = (
        "# The Title: `code`!\n\n`tunesmith rnu x`, [a](docs/no.md), [b](#the-title-code), [c](#no)\n"
        "```python\nfrom tunesmith import load\n```\n"
        "```bash\n# first\n$ ./scripts/demo --out x\n.venv/bin/tunesmith fly\n```\n"
        "`[d](e)` [f](https://example.org) ![g](../../outside.png), [h](docs/index-\nof.md)\n"
    )
    assert commands(text) == ["./scripts/demo --out x", ".venv/bin/tunesmith fly"]
    assert subcommands(text) == {"rnu", "fly"}
    assert broken(README, text) == ["docs/no.md", "#no", "../../outside.png", "docs/index-\nof.md"]
    assert missing_files("`core/files.py`, `scripts/x.py`, `core/file.py`, `files.py`") == {
        "scripts/x.py",
        "core/file.py",
    }
    assert {"run", "plan", "show", "doctor"} <= set(app)
