"""The task `completion`: [bos] prompt answer [eos]; only the answer and [eos] are trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.recipe.schema import CompletionData, Seq2SeqData
from tunesmith.tasks.base import Task, fill_required, fill_single_column
from tunesmith.tasks.text import require_eos_id
from tunesmith.tasks.tokenizer import TokenizerAdapter


class CompletionTask(Task):
    """A prompt and a response. They are encoded separately, so that the prompt has the same ids in generation.

    Without `train_on_end`, the end token is left out: it would be the last token, which nothing is predicted from.
    """

    _data: CompletionData | Seq2SeqData

    def __init__(self, data: CompletionData | Seq2SeqData, tokenizer: TokenizerAdapter) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self.stop_ids = (require_eos_id(tokenizer),)

    def parse(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the prompt and the response."""
        return *self.prompt_turns(row), Turn("response", fill_required(self._data.response, row), trained=True)

    def render(self, turns: Sequence[Turn], example_id: str = "") -> TokenizedExample:
        """Tokenize prompt and answer; raise RowProblem if the answer's ids do not decode to the answer."""
        prompt, answer = self.encode_prompt(turns), self._tokenizer.encode_untrusted(turns[-1].text, allow_markup=True)
        self._tokenizer.require_decodes(answer, turns[-1].text, "answer", before=prompt[-1:])
        ids = (*prompt, *answer, *(self.stop_ids if self._data.train_on_end else ()))
        return TokenizedExample(example_id, ids, (False,) * len(prompt) + (True,) * (len(ids) - len(prompt)))

    def find_control_token(self, turns: Sequence[Turn]) -> str | None:
        """Return the first control token in the text of the prompt or the response."""
        in_prompt = self._tokenizer.find_control_token(turns[0].text)
        return in_prompt or self._tokenizer.find_control_token(turns[-1].text, allow_markup=True)

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of [bos] prompt."""
        return [*self._tokenizer.prefix_ids, *self._tokenizer.encode_untrusted(turns[0].text)]

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return the response."""
        return turns[-1].text

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without its end token."""
        return self._tokenizer.decode([i for i in ids if i not in self.stop_ids])

    def prompt_turns(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the prompt."""
        return (Turn("prompt", fill_required(self._data.prompt, row), trained=False),)

    def user_turn(self, text: str) -> tuple[Turn, ...]:
        """Return the prompt template filled with `text`."""
        return (Turn("prompt", fill_single_column(self._data.prompt, text), trained=False),)
