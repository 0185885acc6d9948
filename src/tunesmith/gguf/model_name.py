"""The name of a model in a GGUF file, from which llama.cpp derives which tokens remove the blanks after them.

A file has no other place for it (src/llama-vocab.cpp, "Handle per token attributes"): in a model whose name contains
`phi-3` or `phi3`, all special tokens but three remove them, and the file is not read if one of four tokens is missing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PHI3 = re.compile(r"phi-?3", re.IGNORECASE)
_MODERN_BERT = re.compile(r"modern-bert", re.IGNORECASE)
_KEEP_BLANKS = frozenset({"<unk>", "<s>", "<|endoftext|>"})
_NEEDED = _KEEP_BLANKS | {"</s>"}


def strips_like_phi3(added_tokens: Sequence[Mapping[str, Any]], vocabulary: Sequence[str]) -> bool:
    """Return whether exactly those tokens remove the blanks after them for which llama.cpp does so in Phi-3.

    Args:
        added_tokens: those of a tokenizer.json.
    """
    strips = {token["content"] for token in added_tokens if token["rstrip"]}
    names = {token["content"] for token in added_tokens}
    strips_left = any(token["lstrip"] for token in added_tokens)
    return bool(strips) and strips == names - _KEEP_BLANKS and not strips_left and _NEEDED.issubset(vocabulary)


def name_in_file(name: str, *, strips_like_phi3: bool) -> str:
    """Return a name that lets llama.cpp treat blanks as the tokenizer does."""
    if strips_like_phi3:
        return name if _PHI3.search(name) else f"{name} (Phi-3)"
    return _MODERN_BERT.sub("modern bert", _PHI3.sub("phi 3", name))
