"""How fast this machine has trained a model before, remembered for the next plan."""

import contextlib
import platform
from pathlib import Path

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import digest_of, read_json, write_json
from tunesmith.fetch.gguf import cached


def remember_speed(model_digest: str, method: str, tokens_per_second: float) -> None:
    """Note the speed of a finished training, which does not fail for the want of a place to note it."""
    with contextlib.suppress(OSError, TunesmithError):
        write_json(_place(model_digest, method), tokens_per_second)


def remembered_speed(model_digest: str, method: str) -> float | None:
    """Return tokens a second of the last training of this model by this method here, or None."""
    path = _place(model_digest, method)
    try:
        return float(read_json(path)) if path.exists() else None
    except (OSError, TunesmithError, TypeError):
        return None


def _place(model_digest: str, method: str) -> Path:
    return cached("speed", f"{digest_of([model_digest, method, platform.node()])[:24]}.json")
