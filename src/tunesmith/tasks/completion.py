"""The task `completion`: [bos] prompt answer [eos]; only the answer and [eos] are trained on."""

from collections.abc import Sequence

from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.recipe.schema import CompletionData
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.prompt_response import PromptResponseTask
from tunesmith.tasks.text import require_eos_id
from tunesmith.tasks.tokenizer import TokenizerAdapter


class CompletionTask(PromptResponseTask):
    """Encodes prompt and answer separately, so that the prompt has the same ids in training and in generation."""

    def __init__(self, data: CompletionData, tokenizer: TokenizerAdapter) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self.stop_ids = (require_eos_id(tokenizer),)

    def render(self, turns: Sequence[Turn], example_id: str = "") -> TokenizedExample:
        """Tokenize prompt and answer; raise RowProblem if the answer's ids do not decode to the answer."""
        prompt, answer = self.encode_prompt(turns), self._tokenizer.encode_untrusted(turns[-1].text, allow_markup=True)
        if not self._tokenizer.decodes_to(answer, turns[-1].text, before=prompt[-1:]):
            detail = repr(turns[-1].text[:80])
            raise RowProblem("the answer's tokens do not decode to the answer", detail, code="decode-mismatch")
        ids = (*prompt, *answer, *self.stop_ids)
        return TokenizedExample(example_id, ids, (False,) * len(prompt) + (True,) * (len(ids) - len(prompt)))

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of [bos] prompt."""
        return [*self._tokenizer.prefix_ids, *self._tokenizer.encode_untrusted(turns[0].text)]

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without its end token."""
        return self._tokenizer.decode([i for i in ids if i not in self.stop_ids])
