"""The tokens whose embeddings an adapter trains, as peft records them."""

from pathlib import Path

from tunesmith.core.files import read_json


def trained_token_ids(folder: Path) -> list[int]:
    """Return the sorted ids of the tokens whose embeddings an adapter trains."""
    indices = read_json(folder / "adapter_config.json").get("trainable_token_indices") or []
    return sorted({token for ids in indices.values() for token in ids} if isinstance(indices, dict) else indices)
