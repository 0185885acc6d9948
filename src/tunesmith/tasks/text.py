"""Plain language modelling: [bos] text [eos], every token learned but the first."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Tokens, Turn
from tunesmith.recipe.schema import TextData, columns_in
from tunesmith.tasks.base import RowProblem, Task, cell, fill
from tunesmith.tasks.tokenizer import Codec


class TextTask(Task):
    """Documents. A sample is a document continued from its first tokens."""

    def __init__(self, data: TextData, codec: Codec) -> None:
        self._data = data
        self._codec = codec
        self.stop_ids = (end_id(codec),)

    def parse(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the document as one trained turn."""
        text = self._data.text
        document = fill(text, row) if columns_in(text) else cell(row, text)
        return (Turn("text", document, trained=True),)

    def render(self, turns: Sequence[Turn], example_id: str = "") -> Tokens:
        """Return [bos] text [eos]; the first id has nothing before it and is not learned."""
        ids = [*self._codec.prefix_ids, *self._encode(turns[0].text)]
        trained = [False] + [True] * len(ids)
        return Tokens(example_id, (*ids, *self.stop_ids), tuple(trained))

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the first tokens of the document."""
        return [*self._codec.prefix_ids, *self._encode(turns[0].text)[: self._data.prompt_tokens]]

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return how the document really goes on."""
        return self._codec.decode(self._encode(turns[0].text)[self._data.prompt_tokens :])

    def answer(self, ids: Sequence[int]) -> str:
        """Return the continuation as text."""
        return self._codec.decode([i for i in ids if i not in self.stop_ids])

    def question(self, text: str) -> tuple[Turn, ...]:
        """Return the text to continue."""
        return (Turn("text", text, trained=True),)

    def _encode(self, text: str) -> list[int]:
        if self._data.control_tokens:
            return self._codec.markup(text)
        ids = self._codec.personal(text)
        if self._codec.decode(ids).strip() != text.strip() and self._codec.tokenizer.unk_token_id in ids:
            raise RowProblem("has characters that the tokenizer does not know")
        return ids


def end_id(codec: Codec) -> int:
    """Return the end-of-text id, without which a model could not learn to stop."""
    if codec.eos_id is None:
        raise RecipeError("the model's tokenizer has no end-of-text token, so it could not learn to stop")
    return codec.eos_id
