"""Export a model: build it in a temporary folder, prove it, and publish it as a whole or not at all.

Also the stage `export`, which does so for each entry of a recipe.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import DamagedFile, DoesNotFit, RecipeError
from tunesmith.core.files import MANIFEST, check_folder, new_folder, read_json, write_json
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.core.user_folders import check_writable
from tunesmith.estimate.disk import free_gib
from tunesmith.export.card import README, write_card
from tunesmith.export.formats import HUB, Options, format_of
from tunesmith.export.hub import check_repository, publish
from tunesmith.export.inputs import inputs
from tunesmith.export.provenance import provenance_of
from tunesmith.export.proving import ExportRefused, prove_export
from tunesmith.export.requests import requests_of
from tunesmith.fetch.reference import ModelFolder, resolve, resolve_tuned
from tunesmith.proof.record import PROOF, Proof, read_proof, write_proof
from tunesmith.proof.text import proof_lines
from tunesmith.recipe.schema import Recipe
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
        proof: the comparison of its answers with those of the model; None if nothing was compared.
        forced: why it was published without a proof that passed; None if the proof passed.
        existed: whether an earlier export of the same model with the same options was there already.
        url: the address of its commit on the hub; None if it was not uploaded.
    """

    folder: Path
    to: str
    type: str
    files: dict[str, int]
    proof: Proof | None = None
    forced: str | None = None
    existed: bool = False
    url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the export as JSON."""
        return {
            "folder": str(self.folder), "to": self.to, "type": self.type, "files": self.files,
            "bytes": sum(self.files.values()), "proof": self.proof.to_json() if self.proof else None,
            "forced": self.forced, "existed": self.existed, "url": self.url,
        }  # fmt: skip

    @property
    def outcome(self) -> str:
        """The result of the proof in a word or two."""
        return "proved" if self.proof and self.proof.passed else "not proved"


def export_model(
    model: str,
    out: Path | str,
    *,
    to: str,
    type: str | None = None,
    readers: Sequence[str] | None = None,
    adapter_only: bool = False,
    quantize_with: str | None = None,
    repo: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    reason: str | None = None,
    skip_proof: bool = False,
) -> Exported:
    """Write a model in the format of other programs to a new folder, and prove that it is still the same model.

    An export of the same model with the same options that is there already is left as it is. It is made again if the
    model was judged again since, or if it was published by force and this call has no `force`.

    Args:
        model: the model: `run:FOLDER`, `NAME@ALIAS`, or any other reference.
        out: the folder to create.
        to: the format: `merged`, `adapter` or `gguf`; `hub` is an adapter if its base is on the hub, else `merged`.
        type: the type of the weights, such as `f16`; default that of the model, for `gguf` f16.
        readers: the programs that an adapter must work in: `peft`, `vllm`, `llama.cpp`; default all.
        adapter_only: write only the adapter as a GGUF file, for llama.cpp to load on top of its base.
        quantize_with: the path of llama.cpp's llama-quantize, which writes K-quants such as `q4_k_m`.
        repo: a repository on the hub, `ORG/NAME`, to which the finished folder is uploaded; private if it is new.
        dry_run: upload nothing.
        force: publish it even if the proof fails or is not possible; needs a reason.
        reason: why; the proof keeps it.
        skip_proof: do not prove it at all; needs `force`.

    Raises:
        RecipeError: the model does not exist, the format cannot hold it, an option is wrong, or `out` exists.
        NotProved: its answers are not those of the model; nothing was published.
        TunesmithError: the hub cannot be reached; the folder is finished, and the same call uploads it.
        DoesNotFit: the disk or the memory is too small.
    """
    options = Options(
        type=type,
        readers=tuple(readers) if readers else None,
        repo=repo,
        adapter_only=adapter_only,
        quantize_with=quantize_with,
    )
    check_reason(force=force, reason=reason)
    if skip_proof and not force:
        hint = 'add --force --reason "..."; the export keeps the reason'
        raise RecipeError("--skip-proof needs --force", hint=hint, code="force-reason")
    if (to == HUB or dry_run) and repo is None:
        raise RecipeError("needs the name of a repository", where="--repo", hint="use ORG/NAME", code="missing-key")
    if to != HUB:
        format_of(to, options)
    check_writable(Path(out).absolute().parent, hint=_OTHER_HINT)
    resolved = resolve(model)
    to = _hub_format(resolved) if to == HUB else to
    if repo is not None and not dry_run:
        check_repository(repo)
    exported = export_resolved(resolved, Path(out), to, options, reason=reason, skip_proof=skip_proof)
    return exported if dry_run else upload(exported, repo)


def export(recipe: Recipe, run: RunDir) -> None:
    """Write the tuned model in the formats of a recipe; finished ones are kept.

    If one cannot be proved, the others are written before its error is raised.
    """
    began, stage_inputs = time.monotonic(), inputs(recipe, run)
    tuned = resolve_tuned(run)
    finished, refused = [], None
    for request in requests_of(recipe, run):
        interrupt.check()
        try:
            exported = export_resolved(
                tuned, request.folder, request.to, request.options, replace_other=request.is_in_run
            )
            exported = upload(exported, request.options.repo)
        except ExportRefused as error:
            log("\n".join([f"export: {request.folder} is not published", *proof_lines(error.proof)]))
            refused = refused or error
        else:
            folder = os.path.relpath(exported.folder, run.path)
            finished.append({**exported.to_json(), "folder": folder, "proof": exported.outcome})
    if refused is not None:
        raise refused
    seconds = round(time.monotonic() - began, 3)
    write_json(
        run.stage("export") / MANIFEST,
        {"stage": "export", "inputs": stage_inputs, "seconds": seconds, "exports": finished},
    )


def export_resolved(
    model: ModelFolder,
    folder: Path,
    to: str,
    options: Options,
    *,
    reason: str | None = None,
    skip_proof: bool = False,
    replace_other: bool = False,
) -> Exported:
    """Export an opened model, as `export_model` does.

    Args:
        reason: why to publish it without a proof that passed; None to require one.
        skip_proof: do not prove it; needs a reason.
        replace_other: replace another export in the folder.
    """
    module = format_of(to, options).load()
    module.check(model, options)
    if reason is None:
        module.require_engine()
    facts: dict[str, Any] = {"to": to, "model_digest": model.digest(), "options": options.to_json()}
    judged = provenance_of(model).judgement_digest
    if existed := os.path.lexists(folder):
        found = _intact_export(folder)
        is_same = facts.items() <= found.items()
        if is_same and found.get("judged") == judged and (reason is not None or found.get("forced") is None):
            log(f"export: {folder} is there already")
            return _read(folder, existed=True)
        if not (is_same or replace_other):
            raise _exists_already(folder)
    facts["judged"] = judged
    _check_disk(folder, module.bytes_needed(model, options))
    log(f"export: writing {folder}")
    with new_folder(folder, export=facts) as new:  # at its end the manifest gets the facts, also those below
        facts["type"] = module.build(model, new, options)
        proof = None if skip_proof else prove_export(module, model, new, facts["type"], options, reason)
        if proof is not None:
            write_proof(proof, new)
        facts["forced"] = None if proof and proof.passed else reason
        write_card(
            new,
            model,
            to=to,
            path=folder.name,
            repository=options.repo,
            adapter_only=options.adapter_only,
            proof=proof,
            forced=facts["forced"],
        )
        if os.path.lexists(folder) != existed:  # another program wrote it in the meantime
            raise _exists_already(folder)
    return _read(folder, existed=False)


def upload(exported: Exported, repo: str | None) -> Exported:
    """Upload an export to a repository on the hub, if there is one, and return the export with its address."""
    if repo is None:
        return exported
    message = f"Upload {exported.to} {exported.type}, {exported.outcome} by tunesmith"
    return replace(exported, url=publish(exported.folder, repo, message=message).url)


def _hub_format(model: ModelFolder) -> str:
    """Return the format for the hub: an adapter if readers can fetch its base there, else the whole model."""
    base = model.base
    return "adapter" if base is not None and base.pin is not None and base.pin.kind == "hub" else "merged"


def _intact_export(folder: Path) -> dict[str, Any]:
    """Return what the manifest of an export says about it; empty if the folder is something else, or was altered.

    The card may be edited: it is read before an export is published.
    """
    try:
        recorded = check_folder(folder, may_change=(README,)).get("export")
    except (DamagedFile, OSError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _exists_already(folder: Path) -> RecipeError:
    return RecipeError("exists already", where=str(folder), hint=_OTHER_HINT, code="exists")


def _check_disk(folder: Path, needed: int) -> None:
    """Raise DoesNotFit if the disk of a folder has less than this many bytes."""
    if (free := free_gib(folder)) < needed / _GIB:
        message = f"the export needs about {needed / _GIB:.2f} GiB, and the disk has {free:.2f} GiB free"
        raise DoesNotFit(message, where=str(folder), hint=_OTHER_HINT, code="not-enough-disk")


def _read(folder: Path, *, existed: bool) -> Exported:
    manifest = read_json(folder / MANIFEST)
    facts, files = manifest["export"], {name: entry["bytes"] for name, entry in manifest["files"].items()}
    proof = read_proof(folder / PROOF) if PROOF in files else None
    return Exported(folder, facts["to"], facts["type"], files, proof=proof, forced=facts["forced"], existed=existed)
