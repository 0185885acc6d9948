"""A tokenizer from its two files alone, where they say all there is to say about it.

transformers is the judge of what a folder's tokenizer is, and importing it takes longer than all else that `plan` does.
So folders as its current version writes them, whose class is the plain one and whose settings are all known here, are
read without it, to the same tokenizer (which is a test); all others are left to transformers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

# Kinds of models for which transformers has no tokenizer of its own that it would take instead, and without an encoder.
PLAIN_MODEL_TYPES = frozenset({"llama", "gpt2", "gpt_neo", "granite", "phi"})
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_WITHOUT_EFFECT = (
    "backend", "tokenizer_class", "is_local", "local_files_only", "model_max_length", "clean_up_tokenization_spaces",
)  # fmt: skip
_FILES_THAT_CHANGE_IT = (
    "special_tokens_map.json", "added_tokens.json", "chat_template.json", "additional_chat_templates", "tekken.json",
)  # fmt: skip
_MOST_WORDS = 100_000  # in larger vocabularies transformers looks for a rule to mend


class TokenizerOutput(NamedTuple):
    """What calling a tokenizer gives."""

    input_ids: list[int]


class PlainTokenizer:
    """What a codec asks of a tokenizer, by the names that transformers has for it."""

    is_fast = True

    def __init__(self, folder: Path, backend: Tokenizer, names: dict[str, str], chat_template: str | None) -> None:
        self.folder = folder
        self.backend_tokenizer = backend
        self.added_tokens_decoder = backend.get_added_tokens_decoder()
        self.special_tokens_map = names
        self.chat_template = chat_template
        self.bos_token_id, self.eos_token_id, self.unk_token_id, self.pad_token_id = (
            backend.token_to_id(names[name]) if name in names else None for name in _NAMES
        )

    def __call__(self, text: str | None = None, *, text_target: str | None = None) -> TokenizerOutput:
        """Return the ids of a text with the special tokens around it."""
        return TokenizerOutput(self.backend_tokenizer.encode(text if text is not None else text_target or "").ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """Return the text of ids."""
        assert not clean_up_tokenization_spaces
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def load_plain_tokenizer(folder: Path) -> PlainTokenizer | None:
    """Return the tokenizer of a model folder, or None where only transformers can tell what it is."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        template = folder / "chat_template.jinja"
        chat_template = template.read_text(encoding="utf-8") if template.exists() else None
        if any((folder / name).exists() for name in _FILES_THAT_CHANGE_IT) or not _is_plain(settings, config):
            return None
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # whatever is wrong with them, transformers has words for it (and tokenizers raises no subclass)
        return None
    names = {name: settings[name] for name in _NAMES if settings.get(name) is not None}
    added = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    if backend.truncation or backend.padding or backend.post_processor is None or not added.issuperset(names.values()):
        return None
    if backend.get_vocab_size() > _MOST_WORDS:
        return None
    return PlainTokenizer(folder, backend, names, chat_template)


def _is_plain(settings: Any, config: Any) -> bool:
    """Say whether a folder's settings are all of those that are known here."""
    if settings.get("tokenizer_class") != "TokenizersBackend" or settings.get("backend") != "tokenizers":
        return False
    if config.get("model_type") not in PLAIN_MODEL_TYPES or config.get("is_encoder_decoder") or "auto_map" in config:
        return False
    named = all(isinstance(settings.get(name, ""), str) for name in _NAMES)
    return named and settings.keys() <= {*_NAMES, *_WITHOUT_EFFECT}
