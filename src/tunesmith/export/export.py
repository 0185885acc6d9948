"""Export a model: build it in a temporary folder, prove it, and publish it as a whole or not at all."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DamagedFile, DoesNotFit, RecipeError
from tunesmith.core.files import MANIFEST, check_folder, new_folder, read_json
from tunesmith.core.progress import log
from tunesmith.core.user_folders import check_writable
from tunesmith.estimate.disk import free_gib
from tunesmith.export.formats import Format, Options, format_of
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.registry.gate import check_reason

_GIB = 2**30
_OTHER_HINT = "name another folder with --out"


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported model.

    Attributes:
        folder: the folder with its files.
        to, type: its format and the type of its weights.
        files: {name: bytes} of its files.
        forced: why it was published without a proof that passed; None if the proof passed.
        existed: whether an earlier export of the same model with the same options was there already.
    """

    folder: Path
    to: str
    type: str
    files: dict[str, int]
    forced: str | None = None
    existed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the export as JSON."""
        return {
            "folder": str(self.folder), "to": self.to, "type": self.type, "files": self.files,
            "bytes": sum(self.files.values()), "forced": self.forced, "existed": self.existed,
        }  # fmt: skip


def export_model(
    model: str,
    out: Path | str,
    *,
    to: str,
    type: str | None = None,
    readers: Sequence[str] | None = None,
    force: bool = False,
    reason: str | None = None,
) -> Exported:
    """Write a model in the format of other programs to a new folder, and prove that it is still the same model.

    An export of the same model with the same options that is there already is left as it is.

    Args:
        model: the model: `run:FOLDER`, `NAME@ALIAS`, or any other reference.
        out: the folder to create.
        to: the format: `merged` or `adapter`.
        type: the type of the weights, such as `f16`; default that of the model.
        readers: the programs that an adapter must work in: `peft`, `vllm`, `llama.cpp`; default all.
        force: publish it even if it cannot be proved; needs a reason.
        reason: why; the proof keeps it.

    Raises:
        RecipeError: the model does not exist, the format cannot hold it, an option is wrong, or `out` exists.
        DoesNotFit: the disk is too small.
    """
    options = Options(type, tuple(readers) if readers else None)
    check_reason(force=force, reason=reason)
    row, folder = format_of(to, options), Path(out)
    check_writable(folder.absolute().parent, hint=_OTHER_HINT)
    resolved = resolve(model)
    row.load().check(resolved, options)
    facts = {"to": to, "model_digest": resolved.digest(), "options": options.to_json()}
    if os.path.lexists(folder):
        return _existing(folder, facts)
    check_disk(folder, row.load().bytes_needed(resolved, options))
    return _build(row, resolved, folder, options, facts, reason)


def _build(
    row: Format, model: ModelFolder, folder: Path, options: Options, facts: dict[str, Any], reason: str | None
) -> Exported:
    """Build, prove and publish an export; without a proof that passed, only with a reason."""
    log(f"export: writing {row.name} to {folder}")
    facts = {**facts, "forced": reason}
    with new_folder(folder, export=facts) as new:
        facts["type"] = row.load().build(model, new, options)
        if reason is None:
            raise RecipeError(
                "an export cannot be proved yet", where=row.name, code="not-proved",
                hint='to publish it without a proof, repeat the command with --force --reason "..."',
            )  # fmt: skip
    return _read(folder, existed=False)


def check_disk(folder: Path, needed: int) -> None:
    """Raise DoesNotFit if the disk of a folder has less than this many bytes."""
    if (free := free_gib(folder)) < needed / _GIB:
        message = f"the export needs about {needed / _GIB:.2f} GiB, and the disk has {free:.2f} GiB free"
        raise DoesNotFit(message, where=str(folder), hint=_OTHER_HINT, code="not-enough-disk")


def _existing(folder: Path, facts: dict[str, Any]) -> Exported:
    """Return an intact export with these facts; raise RecipeError if the folder is anything else."""
    if is_export_of(folder, facts):
        log(f"export: {folder} is there already")
        return _read(folder, existed=True)
    raise RecipeError("exists already", where=str(folder), hint=_OTHER_HINT, code="exists")


def is_export_of(folder: Path, facts: dict[str, Any]) -> bool:
    """Return whether a folder is an intact export whose manifest has these facts."""
    try:
        recorded = check_folder(folder).get("export")
    except (DamagedFile, OSError):
        return False
    return isinstance(recorded, dict) and facts.items() <= recorded.items()


def _read(folder: Path, *, existed: bool) -> Exported:
    manifest = read_json(folder / MANIFEST)
    facts, files = manifest["export"], {name: entry["bytes"] for name, entry in manifest["files"].items()}
    return Exported(folder, facts["to"], facts["type"], files, facts["forced"], existed)
