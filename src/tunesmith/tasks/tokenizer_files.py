"""Load common tokenizers without transformers, whose import takes longer than the rest of `plan`.

transformers decides how a folder's tokenizer is built. A folder in the format of its current version, with the plain
class and settings that are all known here, gives the same tokenizer without it (a test compares the two). All others
are left to transformers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer

from tunesmith.core.errors import RecipeError

# Model types without an encoder for which transformers has no special tokenizer class.
PLAIN_MODEL_TYPES = frozenset({"llama", "gpt2", "gpt_neo", "granite", "phi"})
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")  # the second is the first's name in version 4
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_IGNORED_SETTINGS = (
    "backend", "tokenizer_class", "is_local", "local_files_only", "model_max_length", "clean_up_tokenization_spaces",
    "chat_template",
)  # fmt: skip
# Files that change the tokenizer as well.
_OTHER_FILES = (
    "special_tokens_map.json", "added_tokens.json", "chat_template.json", "additional_chat_templates", "tekken.json",
)  # fmt: skip
_MAX_VOCAB_SIZE = 100_000  # of larger vocabularies, transformers corrects the splitting pattern in some cases


class PlainTokenizer:
    """The attributes and methods of a transformers tokenizer that TokenizerAdapter uses."""

    is_fast = True

    def __init__(
        self, folder: Path, backend: Tokenizer, special_tokens: dict[str, str], chat_template: str | None
    ) -> None:
        self.folder = folder
        self.backend_tokenizer = backend
        self.added_tokens_decoder = backend.get_added_tokens_decoder()
        self.special_tokens_map = special_tokens
        self.chat_template = chat_template
        self.bos_token_id, self.eos_token_id, self.unk_token_id, self.pad_token_id = (
            backend.token_to_id(special_tokens[name]) if name in special_tokens else None for name in _TOKEN_NAMES
        )

    def __call__(self, text: str | None = None, *, text_target: str | None = None) -> SimpleNamespace:
        """Return `input_ids`: the ids of a text, with special tokens around it."""
        return SimpleNamespace(input_ids=self.backend_tokenizer.encode(text or text_target or "").ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """Return the text of ids."""
        assert not clean_up_tokenization_spaces
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def load_plain_tokenizer(folder: Path) -> PlainTokenizer | None:
    """Load the tokenizer of a model folder; return None if it needs transformers."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        template = folder / "chat_template.jinja"
        chat_template = template.read_text(encoding="utf-8") if template.exists() else None
        if any((folder / name).exists() for name in _OTHER_FILES) or not _is_plain(settings, config):
            return None
        if settings.get("chat_template", chat_template) != chat_template:
            return None
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # transformers reports what is wrong; `tokenizers` raises plain Exceptions
        return None
    special_tokens = {name: settings[name] for name in _TOKEN_NAMES if settings.get(name) is not None}
    added = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    is_changed = backend.truncation or backend.padding or backend.post_processor is None
    if is_changed or not added.issuperset(special_tokens.values()) or backend.get_vocab_size() > _MAX_VOCAB_SIZE:
        return None
    return PlainTokenizer(folder, backend, special_tokens, chat_template)


def _is_plain(settings: Any, config: Any) -> bool:
    """Return whether all settings of a folder are known here."""
    if settings.get("tokenizer_class") not in _PLAIN_CLASSES or settings.get("backend") != "tokenizers":
        return False
    if config.get("model_type") not in PLAIN_MODEL_TYPES or config.get("is_encoder_decoder") or "auto_map" in config:
        return False
    are_text = all(isinstance(settings.get(name, ""), str) for name in _TOKEN_NAMES)
    return are_text and settings.keys() <= {*_TOKEN_NAMES, *_IGNORED_SETTINGS}


def load_with_transformers(folder: Path) -> tuple[Any, Any]:
    """Return (tokenizer, configuration), loaded by transformers without running code of the model."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = None
        if (folder / "config.json").exists():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), config
    except (OSError, ValueError, KeyError) as error:
        message = f"cannot load the tokenizer: {str(error).splitlines()[0]}"
        hint = "the folder needs a tokenizer.json"
        raise RecipeError(message, where=str(folder), code="no-tokenizer", hint=hint) from error
