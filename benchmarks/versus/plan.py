"""How much is measured: everything, or just enough to see that the harness works."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asked for, and where.

    Attributes:
        steps: optimizer steps of each run; the first two are left out of rates.
        tried_steps: steps in which each of a peer's settings is tried once.
        tried_seconds: after which a setting that is tried is given up.
        run_seconds: after which any run is stopped.
        systems: names of the only settings of peers that are tried; all where it is empty.
        gpu: whether there is one; `bf16` whether the machine computes in it.
        peers: the interpreter of the peers' environment; None where it could not be made, and `no_peers` says why.
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
        """Return a plan of few and small steps, which says nothing about speed."""
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
        """Return the interpreter of a peer: most share one, and who has needs of its own lies in a folder of it."""
        own = self.peers.parents[1] / family / "bin" / "python" if self.peers else None
        return own if own and own.exists() else self.peers
