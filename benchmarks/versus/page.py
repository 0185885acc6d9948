"""Write results into docs/benchmarks.md, between the markers of each section; other text stays."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks.versus.entries import Entry
from benchmarks.versus.machine import describe_machine
from benchmarks.versus.rows import ROOT
from benchmarks.versus.sections import SECTIONS

PAGE = ROOT / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- measured: {name} -->", "<!-- end of {name} -->"


class NoPlace(Exception):
    """The page has no markers for a section."""


def write_sections(
    path: Any, results: Mapping[str, Sequence[Entry]], machine: Mapping[str, Any], *, busy: bool
) -> None:
    """Replace the sections of the measured benchmarks."""
    text = path.read_text(encoding="utf-8")
    for name, entries in results.items():
        text = replaced(text, name, section(name, entries, machine, busy=busy))
    path.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, words: str) -> str:
    """Return the page with one section replaced.

    Raises:
        NoPlace: the page lacks the markers, or has them twice.
    """
    begin, end = _BEGIN.format(name=name), _END.format(name=name)
    parts = re.split(f"({re.escape(begin)}\n|{re.escape(end)})", text)
    if len(parts) != 5 or parts[1].strip() != begin or parts[3] != end:
        raise NoPlace(f"the page needs `{begin}` and `{end}`, once each and in this order")
    return "".join([parts[0], parts[1], words.strip() + "\n", parts[3], parts[4]])


def section(name: str, entries: Sequence[Entry], machine: Mapping[str, Any], *, busy: bool) -> str:
    """Return the text of a section: machine, versions and tables."""
    versions: dict[str, str] = dict(machine.get("versions", {}))
    for entry in entries:
        versions |= entry.get("versions") or {}
    packages = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    month = datetime.now(UTC).strftime("%B %Y")
    lines = [f"Measured in {month} on {describe_machine(dict(machine))}; {packages or 'no versions known'}."]
    if busy:
        lines.append("**The machine was busy with other work**: only the ratios have some meaning.")
    if any(entry.get("rows") == "demo" for entry in entries):
        lines.append("The real rows were missing; generated rows of the demo replaced them.")
    return "\n".join(lines) + "\n\n" + SECTIONS[name](entries)
