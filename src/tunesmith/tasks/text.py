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
        text = self._encode(turns[0].text)
        end = () if tuple(text[-1:]) == self.stop_ids else self.stop_ids
        ids = (*self._prefix(text), *text, *end)
        unlearned = max(1, len(self._codec.prefix_ids))
        return Tokens(example_id, ids, (False,) * unlearned + (True,) * (len(ids) - unlearned))

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the first tokens of a document, or all of what a person asks to continue."""
        text = self._encode(turns[0].text)
        return [*self._prefix(text), *(text[: self._data.prompt_tokens] if turns[0].trained else text)]

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return how the document really goes on."""
        return self._codec.decode(self._encode(turns[0].text)[self._data.prompt_tokens :])

    def answer(self, ids: Sequence[int]) -> str:
        """Return the continuation as text."""
        return self._codec.decode([i for i in ids if i not in self.stop_ids])

    def question(self, text: str) -> tuple[Turn, ...]:
        """Return the text to continue."""
        return (Turn("text", text, trained=False),)

    def _encode(self, text: str) -> list[int]:
        ids = self._codec.markup(text) if self._data.control_tokens else self._codec.personal(text)
        if not self._codec.says(ids, text):
            raise RowProblem("the document's tokens do not decode to the document", repr(text[:80]))
        return ids

    def _prefix(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return what goes before a document: nothing where it brings its own."""
        prefix = self._codec.prefix_ids
        return () if prefix and tuple(ids[: len(prefix)]) == prefix else prefix


def end_id(codec: Codec) -> int:
    """Return the end-of-text id, without which a model could not learn to stop."""
    if codec.eos_id is None:
        raise RecipeError("the model's tokenizer has no end-of-text token, so it could not learn to stop")
    return codec.eos_id
