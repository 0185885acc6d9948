"""Prove an export before it is published."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from tunesmith.core.errors import Interrupted, NotProved, TunesmithError
from tunesmith.core.progress import log
from tunesmith.export.formats import Options
from tunesmith.fetch.reference import ModelFolder
from tunesmith.proof.prove import prove, require_proved
from tunesmith.proof.record import Proof


class ExportRefused(NotProved):
    """An export was not published, because its proof failed."""

    def __init__(self, error: NotProved, proof: Proof) -> None:
        super().__init__(error.message, where=error.where, hint=error.hint, code=error.code)
        self.proof = proof


def prove_export(
    format_module: ModuleType, model: ModelFolder, folder: Path, type: str, options: Options, reason: str | None
) -> Proof | None:
    """Open an export as its users will, and compare its answers with those of the model.

    Args:
        format_module: the module of the format.
        type: the type of the weights.
        reason: why it is published even if the proof fails or is impossible, which the proof keeps; None to require it.

    Returns:
        The proof; None if it is published although nothing could be compared.

    Raises:
        ExportRefused: the answers differ.
        TunesmithError: the export cannot be opened, or its program cannot be asked.
    """
    try:
        with format_module.open_engine(model, folder, options) as engine:
            proof = prove(model, engine, type=type)
    except Interrupted:
        raise
    except TunesmithError as error:
        if reason is None:
            raise
        log(f"export: not proved: {error}")
        return None
    if reason is not None and not proof.passed:
        return replace(proof, forced=reason)
    try:
        require_proved(proof)
    except NotProved as error:
        raise ExportRefused(error, proof) from None
    return proof
