"""The tokens that an adapter brings vectors for, as peft notes them."""

from pathlib import Path

from tunesmith.core.files import read_json


def trained_tokens(folder: Path) -> list[int]:
    """Return the tokens that an adapter brings rows for."""
    found = read_json(folder / "adapter_config.json").get("trainable_token_indices") or []
    return sorted({token for ids in found.values() for token in ids} if isinstance(found, dict) else found)
