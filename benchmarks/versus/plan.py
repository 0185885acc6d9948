"""The amount of work: all measurements, or a quick check of the harness."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of the command line and the facts about the machine.

    Attributes:
        steps: optimizer steps of each run; the first two are left out of rates.
        tried_steps: steps of the single trial of each setting of a peer.
        tried_seconds: time limit of a trial.
        run_seconds: time limit of a run.
        systems: names of the settings of peers to try; empty for all.
        gpu: whether the machine has a GPU; `bf16`: whether it computes in bf16.
        peers: the interpreter of the peers' environment; None if it could not be made, with the reason in `no_peers`.
    """

    scratch: Path
    quick: bool = False
    repeats: int = 3
    steps: int = 8
    examples_per_step: int = 8
    tried_steps: int = 4
    tried_seconds: float = 600.0
    run_seconds: float = 1800.0
    systems: tuple[str, ...] = ()
    gpu: bool = False
    bf16: bool = False
    peers: Path | None = None
    no_peers: str | None = None

    @classmethod
    def quickly(cls, scratch: Path, *, gpu: bool = False, bf16: bool = False) -> "Plan":
        """Return a plan with few and small steps, to test the harness only."""
        return cls(
            scratch,
            quick=True,
            repeats=1,
            steps=3,
            examples_per_step=2,
            tried_steps=3,
            tried_seconds=90,
            gpu=gpu,
            bf16=bf16,
        )

    def python_of(self, family: str) -> Path | None:
        """Return the interpreter of a peer: the shared one, or that of its sub-environment."""
        own = self.peers.parents[1] / family / "bin" / "python" if self.peers else None
        return own if own and own.exists() else self.peers
