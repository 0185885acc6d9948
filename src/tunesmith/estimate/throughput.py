"""How fast this machine has trained a model before, remembered for the next plan."""

import contextlib
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import digest_of, read_json, write_json
from tunesmith.core.user_folders import cache_root


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one process is.

    Attributes:
        tokens_per_second: while it computes gradients.
        cores: how many it has; None, where a GPU computes.
        update_seconds: what moving the weights takes, once in a step however many its tokens are.
        reading: tokens a second while it only measures a loss; None if it has not been measured.
        writing: tokens of answers a second, their prompts read meanwhile; None if it has not been measured.
    """

    tokens_per_second: float
    cores: int | None = None
    update_seconds: float = 0.0
    reading: float | None = None
    writing: float | None = None

    def on(self, cores: float | None) -> "Speed":
        """Return the speed with so many cores: where they are fewer, it is taken to fall as they do.

        More may be faster, and nobody knows by how much.
        """
        share = min(1.0, cores / self.cores) if cores and self.cores else 1.0
        return replace(
            self,
            tokens_per_second=self.tokens_per_second * share,
            update_seconds=self.update_seconds / share,
            reading=self.reading and self.reading * share,
            writing=self.writing and self.writing * share,
        )

    def step_seconds(self, tokens: float, moved: float = 1.0) -> float:
        """Return how long a step of so many tokens takes that moves so much of the weights that are trained."""
        return tokens / self.tokens_per_second + moved * self.update_seconds


def save_speed(model_digest: str, method: str, speed: Speed, *, alone: bool) -> None:
    """Note the speed of a finished training, which does not fail for the want of a place to note it.

    That of one process of many, who also wait for each other, only where nothing is known.
    """
    with contextlib.suppress(OSError, TunesmithError):
        before = load_speed(model_digest, method)
        if alone or before is None:
            if before is not None:  # what this turn did not measure
                speed = replace(speed, reading=speed.reading or before.reading, writing=before.writing)
            write_json(_place(model_digest, method), asdict(speed))


def save_generation_speed(model_digest: str, method: str, tokens_per_second: float) -> None:
    """Note how fast one process answered, next to how fast it trained; ignored for a model never trained here."""
    with contextlib.suppress(OSError, TunesmithError):
        if before := load_speed(model_digest, method):
            write_json(_place(model_digest, method), asdict(replace(before, writing=tokens_per_second)))


def load_speed(model_digest: str, method: str) -> Speed | None:
    """Return the speed of the last training of this model by this method here, or None."""
    path = _place(model_digest, method)
    try:
        return Speed(**read_json(path)) if path.exists() else None
    except (OSError, TunesmithError, TypeError):
        return None


def _place(model_digest: str, method: str) -> Path:
    return cache_root() / "speed" / f"{digest_of([model_digest, method, platform.node()])[:24]}.json"
