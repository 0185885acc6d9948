"""Plain language modelling: [bos] text [eos], every token learned but the first."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.recipe.schema import TextData
from tunesmith.recipe.template import columns_in
from tunesmith.tasks.base import RowProblem, Task, cell_text, fill_required
from tunesmith.tasks.tokenizer import TokenizerAdapter

# Roles of a document or its first block, and of its later blocks.
_TEXT, _CONTINUED = "text", "continued"


class TextTask(Task):
    """Documents, long ones in blocks where the recipe says so. A sample is one continued from its first tokens."""

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
        """Return [bos] text [eos], or a block as it is; what has nothing of the document before it is not learned."""
        [turn] = turns
        ids = turn.ids or self._whole(turn.text)
        unlearned = 1 if turn.role == _CONTINUED else max(1, len(self._tokenizer.prefix_ids))
        return TokenizedExample(example_id, ids, (False,) * unlearned + (True,) * (len(ids) - unlearned))

    def split_blocks(self, tokens: TokenizedExample, most: int) -> list[tuple[Turn, ...]]:
        """Return a longer document as blocks of `most` tokens and a shorter last one, if the recipe says `split`.

        A block begins with the last token of the one before, which it reads and does not learn. So each token is
        learned once, none is predicted from nothing, and the last block has at least one to learn.
        """
        ids = tokens.input_ids
        if self._data.too_long != "split" or len(ids) <= most:
            return []
        return [(self._block(start, ids[start : start + most]),) for start in range(0, len(ids) - 1, most - 1)]

    def find_control_token(self, turns: Sequence[Turn]) -> str | None:
        """Return the first control token that a document spells, unless the recipe lets it write them."""
        return None if self._data.control_tokens else self._tokenizer.find_control_token(turns[0].text)

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the first tokens of a document or block, or all of what a person asks to continue."""
        return self._sample(turns[0])[0]

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return how the document or block really goes on."""
        return self._tokenizer.decode(self._sample(turns[0])[1])

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the continuation as text."""
        return self._tokenizer.decode([i for i in ids if i not in self.stop_ids])

    def prompt_turns(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the document, which a model continues from its first tokens."""
        return self.parse(row)

    def user_turn(self, text: str) -> tuple[Turn, ...]:
        """Return the text to continue."""
        return (Turn(_TEXT, text, trained=False),)

    def _whole(self, document: str) -> tuple[int, ...]:
        """Return [bos] text [eos]; neither a second time where the document brings its own."""
        text = self._encode(document)
        end = () if tuple(text[-1:]) == self.stop_ids else self.stop_ids
        return (*self._prefix(text), *text, *end)

    def _block(self, start: int, ids: tuple[int, ...]) -> Turn:
        """Return the block that begins at a place of a document; its text is without the tokens around a document."""
        text = ids[0 if start else len(self._tokenizer.prefix_ids) :]
        return Turn(_CONTINUED if start else _TEXT, self.decode_answer(text), trained=True, ids=ids)

    def _sample(self, turn: Turn) -> tuple[list[int], list[int]]:
        """Return what a sample is continued from, and how that goes on without its end."""
        if turn.ids:
            ids = list(turn.ids[:-1] if turn.ids[-1:] == self.stop_ids else turn.ids)
            asked = len(self._tokenizer.prefix_ids) + self._data.sample_prefix_tokens
        else:
            text = self._encode(turn.text)
            prefix = self._prefix(text)
            ids = [*prefix, *text]
            asked = len(prefix) + self._data.sample_prefix_tokens if turn.trained else len(ids)
        return ids[:asked], ids[asked:]

    def _encode(self, text: str) -> list[int]:
        ids = (
            self._tokenizer.encode_trusted(text)
            if self._data.control_tokens
            else self._tokenizer.encode_untrusted(text)
        )
        if not self._tokenizer.decodes_to(ids, text):
            raise RowProblem("the document's tokens do not decode to the document", repr(text[:80]))
        return ids

    def _prefix(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return what goes before a document: nothing where it brings its own."""
        prefix = self._tokenizer.prefix_ids
        return () if prefix and tuple(ids[: len(prefix)]) == prefix else prefix


def require_eos_id(tokenizer: TokenizerAdapter) -> int:
    """Return the end-of-text id, without which a model could not learn to stop."""
    if tokenizer.eos_id is None:
        raise RecipeError("the model's tokenizer has no end-of-text token, so it could not learn to stop")
    return tokenizer.eos_id
