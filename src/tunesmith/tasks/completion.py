"""A prompt and its answer: [bos] prompt answer [eos]; only answer and eos are learned."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.records import Tokens, Turn
from tunesmith.recipe.schema import CompletionData
from tunesmith.tasks.base import RowProblem, Task, ask, filled
from tunesmith.tasks.text import end_id
from tunesmith.tasks.tokenizer import Codec


class CompletionTask(Task):
    """Prompt and answer are encoded apart, so the prompt's ids are the same in training and in use."""

    def __init__(self, data: CompletionData, codec: Codec) -> None:
        self._data = data
        self._codec = codec
        self.stop_ids = (end_id(codec),)

    def parse(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the prompt and the answer."""
        prompt, response = filled(self._data.prompt, row), filled(self._data.response, row)
        return Turn("prompt", prompt, trained=False), Turn("response", response, trained=True)

    def render(self, turns: Sequence[Turn], example_id: str = "") -> Tokens:
        """Return prompt and answer; the answer is proved to decode to what the row says."""
        prompt, answer = self.prompt(turns), self._codec.personal(turns[-1].text, allow_markup=True)
        if not self._codec.says(answer, turns[-1].text, before=prompt[-1:]):
            raise RowProblem("the answer's tokens do not decode to the answer", repr(turns[-1].text[:80]))
        ids = (*prompt, *answer, *self.stop_ids)
        return Tokens(example_id, ids, (False,) * len(prompt) + (True,) * (len(ids) - len(prompt)))

    def spelled(self, turns: Sequence[Turn]) -> str | None:
        """Return the first control token that prompt or answer spell."""
        return self._codec.spelled(turns[0].text) or self._codec.spelled(turns[-1].text, allow_markup=True)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return [bos] prompt."""
        return [*self._codec.prefix_ids, *self._codec.personal(turns[0].text)]

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return the answer."""
        return turns[-1].text

    def answer(self, ids: Sequence[int]) -> str:
        """Return the answer as text."""
        return self._codec.decode([i for i in ids if i not in self.stop_ids])

    def asked(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the prompt alone."""
        return (Turn("prompt", filled(self._data.prompt, row), trained=False),)

    def question(self, text: str) -> tuple[Turn, ...]:
        """Return the prompt that asks `text`."""
        return (Turn("prompt", ask(self._data.prompt, text), trained=False),)
