"""The tokens that an adapter has vectors of its own for, as peft records them."""

from pathlib import Path

from tunesmith.core.files import read_json


def trained_token_ids(folder: Path) -> list[int]:
    """Return the ids of the tokens that an adapter has embedding rows for, in order."""
    found = read_json(folder / "adapter_config.json").get("trainable_token_indices") or []
    return sorted({token for ids in found.values() for token in ids} if isinstance(found, dict) else found)
