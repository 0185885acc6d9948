"""An export as text: its files, its proof, and how to use it."""

from tunesmith.core.progress import format_bytes
from tunesmith.export.card import README
from tunesmith.export.export import Exported
from tunesmith.export.formats import FORMATS
from tunesmith.proof.text import proof_lines


def describe_export(exported: Exported, repo: str | None = None) -> str:
    """Return the files of an export, their sizes, the proof, and where it was or would be uploaded.

    Args:
        repo: the repository on the hub.
    """
    total = sum(exported.files.values())
    lines = [f"{exported.folder}: {FORMATS[exported.to].title}, {exported.type}, {format_bytes(total)}"]
    lines += [f"  {format_bytes(size):>9}  {name}" for name, size in exported.files.items()]
    if exported.proof is not None:
        lines += ["", *proof_lines(exported.proof), ""]
    elif exported.forced is not None:
        lines += ["", f"not proved; published by force: {exported.forced}", ""]
    if exported.url is not None:
        lines.append(f"uploaded: {exported.url}")
    elif repo is not None:
        lines.append(f"dry run: the same command without --dry-run uploads these files to {repo}")
    return "\n".join([*lines, f"next: {exported.folder / README} shows how to run it"])
