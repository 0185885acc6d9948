"""Writes what was measured into docs/benchmarks.md, between the marks of each section; all else stays as it is."""

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
    """The page has no marks for a section."""


def write_sections(
    path: Any, results: Mapping[str, Sequence[Entry]], machine: Mapping[str, Any], *, busy: bool
) -> None:
    """Put the sections of what was measured in their places."""
    text = path.read_text(encoding="utf-8")
    for name, entries in results.items():
        text = replaced(text, name, section(name, entries, machine, busy=busy))
    path.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, words: str) -> str:
    """Return a page with the words of one section put between its marks.

    Raises:
        NoPlace: the page has no such marks, or has them twice.
    """
    begin, end = _BEGIN.format(name=name), _END.format(name=name)
    parts = re.split(f"({re.escape(begin)}\n|{re.escape(end)})", text)
    if len(parts) != 5 or parts[1].strip() != begin or parts[3] != end:
        raise NoPlace(f"the page needs `{begin}` and `{end}`, once each and in this order")
    return "".join([parts[0], parts[1], words.strip() + "\n", parts[3], parts[4]])


def section(name: str, entries: Sequence[Entry], machine: Mapping[str, Any], *, busy: bool) -> str:
    """Return what stands between the marks: on what it was measured, with which versions, and the tables."""
    versions: dict[str, str] = dict(machine.get("versions", {}))
    for one in entries:
        versions |= one.get("versions") or {}
    told = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    month = datetime.now(UTC).strftime("%B %Y")
    lines = [f"Measured in {month} on {describe_machine(dict(machine))}; {told or 'no versions known'}."]
    if busy:
        lines.append("**The machine was busy with other work**: trust the ratios a little and the rest not at all.")
    if any(one.get("rows") == "demo" for one in entries):
        lines.append("The real rows were not at hand, so the demo's generated rows stand in for them.")
    return "\n".join(lines) + "\n\n" + SECTIONS[name](entries)
