"""An export as text: its files, its proof, and how to use it."""

from tunesmith.export.export import Exported
from tunesmith.export.formats import FORMATS


def describe_export(exported: Exported) -> str:
    """Return what was written, its size and the command that uses it."""
    total = sum(exported.files.values())
    lines = [f"{exported.folder}: {FORMATS[exported.to].title}, {exported.type}, {format_bytes(total)}"]
    lines += [f"  {format_bytes(size):>9}  {name}" for name, size in exported.files.items()]
    if exported.forced is not None:
        lines.append(f"not proved; published because: {exported.forced}")
    return "\n".join([*lines, f"next: {FORMATS[exported.to].load().usage(exported.folder)}"])


def format_bytes(count: int) -> str:
    """Return a number of bytes with a decimal unit, as file managers and disks state it."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
