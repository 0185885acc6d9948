"""The tokenizer and its chat template, with the one promise transformers does not make:

text that came from a person is never encoded into a control token.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of
from tunesmith.tasks.base import RowProblem

# Added tokens that are not flagged special still steer a model when they look like markup (<think>, [INST], <|x|>);
# runs of blanks, which some tokenizers add too, do not.
_MARKUP = re.compile(r"^<.+>$|^\[.+\]$|^<\|.*\|>$")


class Codec:
    """Encodes template markup and personal text apart, decodes, and renders chat templates."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise RecipeError(
                f"the tokenizer {type(tokenizer).__name__} has no fast version, so spans cannot be proved",
                hint="use a model whose folder has a tokenizer.json",
            )
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder
        # The unknown token steers nothing, and any text may hold a character that a tokenizer does not know.
        unknown = tokenizer.unk_token_id
        self.special_ids = frozenset(i for i, token in added.items() if token.special and i != unknown)
        self.control_ids = self.special_ids | {i for i, token in added.items() if _MARKUP.match(token.content)}
        self.eos_id: int | None = tokenizer.eos_token_id
        empty = tokenizer("").input_ids
        self.prefix_ids = tuple(empty) if empty == [tokenizer.bos_token_id] else ()

    @classmethod
    def load(cls, folder: Path) -> "Codec":
        """Load the tokenizer of a model folder; no weights are read and no code of the model is run."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise RecipeError(
                f"no usable tokenizer: {str(error).splitlines()[0]}", where=str(folder), hint="it needs tokenizer.json"
            ) from error
        return cls(tokenizer)

    @property
    def pad_id(self) -> int:
        """The id that fills up batches; masks go by position, so any id will do, eos included."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.eos_id if self.eos_id is not None else 0)

    @cached_property
    def digest(self) -> str:
        """Digest of all that decides how text becomes ids: vocabulary, rules, chat template."""
        return digest_of([self._backend.to_str(), self.tokenizer.chat_template])

    def markup(self, text: str) -> list[int]:
        """Encode text in which control tokens mean what they say: what a chat template writes."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def markup_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Encode as `markup` does; also return the character at which each token ends."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return list(encoding.ids), [end for _, end in encoding.offsets]

    def personal(self, text: str, *, allow_markup: bool = False) -> list[int]:
        """Encode text of a person or a data set, in which control tokens are only letters.

        Args:
            allow_markup: let tokens that are not flagged special (such as <think>) through, as answers may hold them.
        """
        forbidden = self.special_ids if allow_markup else self.control_ids
        ids = self.markup(text)
        if forbidden.isdisjoint(ids):
            return ids
        ids = list(
            (self._without_special if allow_markup else self._without_control)
            .encode(text, add_special_tokens=False)
            .ids
        )
        if not forbidden.isdisjoint(ids):
            raise RowProblem("text cannot be encoded without control tokens", repr(text[:80]))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, control tokens written out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @property
    def has_template(self) -> bool:
        """Say whether the model has a chat template."""
        return bool(self.tokenizer.chat_template)

    def chat_text(self, messages: list[dict[str, str]], *, generation: bool) -> str:
        """Return what the chat template writes; raise jinja2.TemplateError where it refuses the conversation."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))

    @cached_property
    def _without_control(self) -> Any:
        return self._without(self.control_ids)

    @cached_property
    def _without_special(self) -> Any:
        return self._without(self.special_ids)

    def _without(self, ids: frozenset[int]) -> Any:
        """Build the same tokenizer, unaware of some of its added tokens."""
        from tokenizers import Tokenizer

        state = json.loads(self._backend.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] not in ids]
        vocabulary = state["model"].get("vocab")
        if isinstance(vocabulary, dict):
            # The rank of an id must stay; only the way from text to a control token goes.
            merged = {merge if isinstance(merge, str) else "".join(merge) for merge in state["model"].get("merges", [])}
            for text, token_id in list(vocabulary.items()):
                if token_id in ids and text not in merged and text != state["model"].get("unk_token"):
                    del vocabulary[text]
        return Tokenizer.from_str(json.dumps(state))
