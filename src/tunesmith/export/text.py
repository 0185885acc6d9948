"""An export as text: its files, its proof, and how to use it."""

from tunesmith.core.progress import format_bytes
from tunesmith.export.export import Exported
from tunesmith.export.formats import FORMATS
from tunesmith.proof.text import proof_lines


def describe_export(exported: Exported) -> str:
    """Return what was written, its size and the command that uses it."""
    total = sum(exported.files.values())
    lines = [f"{exported.folder}: {FORMATS[exported.to].title}, {exported.type}, {format_bytes(total)}"]
    lines += [f"  {format_bytes(size):>9}  {name}" for name, size in exported.files.items()]
    if exported.proof is not None:
        lines += ["", *proof_lines(exported.proof), ""]
    elif exported.forced is not None:
        lines += ["", f"not proved; published by force: {exported.forced}", ""]
    return "\n".join([*lines, f"next: {FORMATS[exported.to].load().usage(exported.folder)}"])
