"""The task `text`, language modelling on documents: [bos] text [eos], trained on every token except the first."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.recipe.schema import TextData
from tunesmith.recipe.template import columns_in
from tunesmith.tasks.base import Task, cell_text, fill_required
from tunesmith.tasks.tokenizer import TokenizerAdapter

# Roles of a document or its first block, and of its later blocks.
_TEXT, _CONTINUED = "text", "continued"


class TextTask(Task):
    """Documents; long ones may be split into blocks. A sample continues the first tokens of a document."""

    def __init__(self, data: TextData, tokenizer: TokenizerAdapter) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self.stop_ids = (require_eos_id(tokenizer),)

    def parse(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the document as one trained turn."""
        text = self._data.text
        document = fill_required(text, row) if columns_in(text) else cell_text(row, text)
        return (Turn(_TEXT, document, trained=True),)

    def render(self, turns: Sequence[Turn], example_id: str = "") -> TokenizedExample:
        """Return [bos] text [eos], or the ids of a block. Tokens without context in the document are not trained on."""
        [turn] = turns
        ids = turn.ids or self._encode_document(turn.text)
        untrained = 1 if turn.role == _CONTINUED else max(1, len(self._tokenizer.prefix_ids))
        return TokenizedExample(example_id, ids, (False,) * untrained + (True,) * (len(ids) - untrained))

    def split_blocks(self, example: TokenizedExample, max_tokens: int) -> list[tuple[Turn, ...]]:
        """Split a long document into blocks of `max_tokens` tokens and a shorter last one, if `too_long` is `split`.

        A block begins with the last token of the previous one, as context. So each token is trained on once and with
        context, and the last block has at least one trained token.
        """
        ids = example.input_ids
        if self._data.too_long != "split" or len(ids) <= max_tokens:
            return []
        starts = range(0, len(ids) - 1, max_tokens - 1)
        return [(self._block(start, ids[start : start + max_tokens]),) for start in starts]

    def find_control_token(self, turns: Sequence[Turn]) -> str | None:
        """Return the first control token in a document's text, unless the recipe allows them."""
        return None if self._data.control_tokens else self._tokenizer.find_control_token(turns[0].text)

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the first ids of a document or block, or all ids of a text that a user typed."""
        return self._prefix_and_rest(turns[0])[0]

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return the rest of the document or block."""
        return self._tokenizer.decode(self._prefix_and_rest(turns[0])[1])

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the text of a continuation, without its end token."""
        return self._tokenizer.decode([i for i in ids if i not in self.stop_ids])

    def prompt_turns(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the document; the model continues its first tokens."""
        return self.parse(row)

    def user_turn(self, text: str) -> tuple[Turn, ...]:
        """Return the text to continue."""
        return (Turn(_TEXT, text, trained=False),)

    def _encode_document(self, document: str) -> tuple[int, ...]:
        """Return [bos] text [eos], without a second [bos] or [eos] if the document has them already.

        Without `train_on_end` there is no [eos]: nothing would be predicted from it.
        """
        text = self._encode(document)
        if tuple(text[-1:]) == self.stop_ids:
            text = text[:-1]
        return (*self._prefix(text), *text, *(self.stop_ids if self._data.train_on_end else ()))

    def _block(self, start: int, ids: tuple[int, ...]) -> Turn:
        """Return a block as a turn; its text leaves out [bos] and [eos].

        Args:
            start: index of the block's first token in the document.
        """
        text_ids = ids[0 if start else len(self._tokenizer.prefix_ids) :]
        return Turn(_CONTINUED if start else _TEXT, self.decode_answer(text_ids), trained=True, ids=ids)

    def _prefix_and_rest(self, turn: Turn) -> tuple[list[int], list[int]]:
        """Return the ids that a sample starts from, and the ids that follow in the document, without its end."""
        if turn.ids:
            ids = list(turn.ids[:-1] if turn.ids[-1:] == self.stop_ids else turn.ids)
            count = len(self._tokenizer.prefix_ids) + self._data.sample_prefix_tokens
        else:
            text = self._encode(turn.text)
            prefix = self._prefix(text)
            ids = [*prefix, *text]
            count = len(prefix) + self._data.sample_prefix_tokens if turn.trained else len(ids)
        return ids[:count], ids[count:]

    def _encode(self, text: str) -> list[int]:
        tokenizer = self._tokenizer
        ids = tokenizer.encode_trusted(text) if self._data.control_tokens else tokenizer.encode_untrusted(text)
        tokenizer.require_decodes(ids, text, "document")
        return ids

    def _prefix(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens to put before a document; none if the document begins with them."""
        prefix = self._tokenizer.prefix_ids
        return () if prefix and tuple(ids[: len(prefix)]) == prefix else prefix


def require_eos_id(tokenizer: TokenizerAdapter) -> int:
    """Return the id of the end-of-text token; raise RecipeError if there is none."""
    if tokenizer.eos_id is None:
        message = "the model's tokenizer has no end-of-text token, so the model could not learn to stop"
        raise RecipeError(message, where="model.base", code="no-stop-token", hint="use a base whose tokenizer has one")
    return tokenizer.eos_id
