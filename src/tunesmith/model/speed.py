"""How fast this machine has trained a model before, remembered for the next plan."""

import contextlib
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import digest_of, read_json, write_json
from tunesmith.fetch.gguf import cached


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of one process, and on how many cores; None, where a GPU computed."""

    tokens_per_second: float
    cores: int | None = None

    def on(self, cores: float | None) -> float:
        """Return the speed with so many cores: where they are fewer, it is taken to fall as they do.

        More may be faster, and nobody knows by how much.
        """
        return self.tokens_per_second * (min(1.0, cores / self.cores) if cores and self.cores else 1.0)


def remember_speed(model_digest: str, method: str, speed: Speed, *, alone: bool) -> None:
    """Note the speed of a finished training, which does not fail for the want of a place to note it.

    That of one process of many, who also wait for each other, only where nothing is known.
    """
    with contextlib.suppress(OSError, TunesmithError):
        if alone or remembered_speed(model_digest, method) is None:
            write_json(_place(model_digest, method), asdict(speed))


def remembered_speed(model_digest: str, method: str) -> Speed | None:
    """Return the speed of the last training of this model by this method here, or None."""
    path = _place(model_digest, method)
    try:
        return Speed(**read_json(path)) if path.exists() else None
    except (OSError, TunesmithError, TypeError):
        return None


def _place(model_digest: str, method: str) -> Path:
    return cached("speed", f"{digest_of([model_digest, method, platform.node()])[:24]}.json")
