"""The result of a proof: one record, written to `proof.json` and read strictly."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import read_json, write_json
from tunesmith.core.stored import require_equal, typed
from tunesmith.core.verdict import Verdict
from tunesmith.core.verdict_reader import parse_verdict

PROOF = "proof.json"
ANSWERED = "answered prompts"
"""The measure of the prompts that an engine did not refuse."""
SAME = "equal answers, or undecided in the reference"
"""The measure of the answers, for types of weights whose answers must be equal."""

Status = Literal["passed", "failed", "not possible"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A number that a check measured.

    Attributes:
        name: the quantity, with its unit.
        value: the number.
        of: for a count, the number of things that were compared.
        at_least, at_most: the limits of a value that passes; None for a value that is only stated.
    """

    name: str
    value: float
    of: int | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is within its limits."""
        is_high_enough = self.at_least is None or self.value >= self.at_least
        return is_high_enough and (self.at_most is None or self.value <= self.at_most)

    @property
    def has_limit(self) -> bool:
        """Whether the value can fail; otherwise it is only stated."""
        return (self.at_least, self.at_most) != (None, None)

    @classmethod
    def all_of(cls, name: str, value: int, of: int) -> "Measure":
        """Return a count that passes only if it includes everything."""
        return cls(name, value, of, at_least=of)


@dataclass(frozen=True, slots=True)
class Check:
    """One question to the engine. Its status follows from the measures.

    Attributes:
        name: `ids`, `template`, `logits`, `base`, `answers` or `verdict`.
        measures: the numbers, with their limits; empty if the check was not possible.
        details: sentences about the result, such as the first differences.
        impossible: why the check was not possible; None if it was made.
    """

    name: str
    measures: tuple[Measure, ...] = ()
    details: tuple[str, ...] = ()
    impossible: str | None = None

    @property
    def status(self) -> Status:
        """Whether all measures are within their limits."""
        if self.impossible is not None:
            return "not possible"
        return "passed" if all(measure.passed for measure in self.measures) else "failed"

    def to_json(self) -> dict[str, Any]:
        """Return the check as an entry of `checks` in proof.json."""
        entry = asdict(self)
        return {**entry, "status": self.status, "measures": list(entry["measures"]), "details": list(self.details)}


@dataclass(frozen=True, slots=True)
class Proof:
    """The comparison of an engine with a model computed in fp32.

    Attributes:
        model: the name of the model, without paths of this machine.
        model_digest: the digest of its files.
        engine: the program that was asked, with its version.
        type: the type of its weights, which decides the limits: `f16`, `q8_0`.
        reference: how the answers that it is compared with were computed.
        rows: the number of test rows that were asked; 0 if only probes were.
        checks: one for each question, in the order in which they were asked.
        verdict: the paired comparison on the test rows, with the reference as base and the engine as tuned; None if it
            was not possible.
        forced: the reason given for publishing a model that did not pass; None if it was not published so.
    """

    model: str
    model_digest: str
    engine: str
    type: str
    reference: Mapping[str, str | None]
    rows: int
    checks: tuple[Check, ...]
    verdict: Verdict | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    forced: str | None = None

    @property
    def passed(self) -> bool:
        """Whether no check failed, and one was passed that another model would fail."""
        return not self.failed and any(map(_tells_models_apart, self.checks))

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    def to_json(self) -> dict[str, Any]:
        """Return the content of proof.json."""
        return {
            "passed": self.passed,
            "model": self.model,
            "model_digest": self.model_digest,
            "engine": self.engine,
            "type": self.type,
            "reference": dict(self.reference),
            "rows": self.rows,
            "checks": [check.to_json() for check in self.checks],
            "verdict": self.verdict.to_json() if self.verdict else None,
            "versions": dict(self.versions),
            "forced": self.forced,
        }


def _tells_models_apart(check: Check) -> bool:
    """Return whether a check was passed, and another model would fail it.

    Most models give answers that end, and with few rows no loss is shown of any model: neither says which one it is.
    """
    if check.status != "passed":
        return False
    if check.name == "answers":
        return any(measure.name == SAME and measure.has_limit for measure in check.measures)
    if check.name == "verdict":  # of its two losses, the one that is not excluded may have no limit
        return all(measure.has_limit for measure in check.measures)
    return check.name == "logits"


def write_proof(proof: Proof, folder: Path) -> Path:
    """Write `proof.json` to a folder, and return its path."""
    write_json(folder / PROOF, proof.to_json())
    return folder / PROOF


def read_proof(path: Path) -> Proof:
    """Return the proof in a file; raise DamagedFile if it is incomplete or contradicts itself."""
    return parse_proof(read_json(path), where=str(path))


def parse_proof(stored: object, *, where: str = "proof") -> Proof:
    """Rebuild a proof from the content of proof.json.

    Raises:
        DamagedFile: a value is missing or of the wrong type, or two values contradict each other, such as the status of
            a check and its measures.
    """
    try:
        entry = dict(typed(stored, Mapping[str, Any], "it"))
        verdict = entry.pop("verdict")
        proof: Proof = typed({**entry, "verdict": None}, Proof, "proof")
        if verdict is not None:
            proof = replace(proof, verdict=parse_verdict(verdict, where=where))
        require_equal(proof.to_json(), stored, "")
    except (ValueError, KeyError) as error:
        problem = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else error
        message, hint = f"is not a complete proof: {problem}", "prove the model again"
        raise DamagedFile(message, where=where, hint=hint, code="damaged-proof") from error
    return proof
