"""Prompt and response from a row's columns: the part that the tasks completion and seq2seq share."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.records import Turn
from tunesmith.recipe.schema import CompletionData, Seq2SeqData
from tunesmith.tasks.base import Task, fill_required, fill_single_column
from tunesmith.tasks.tokenizer import TokenizerAdapter


class PromptResponseTask(Task):
    """Two turns: a prompt (or source) and a response (or target). Only the response is trained on."""

    _data: CompletionData | Seq2SeqData
    _tokenizer: TokenizerAdapter

    def parse(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the prompt and the response."""
        return *self.prompt_turns(row), Turn("response", fill_required(self._data.response, row), trained=True)

    def find_control_token(self, turns: Sequence[Turn]) -> str | None:
        """Return the first control token in the text of the prompt or the response."""
        in_prompt = self._tokenizer.find_control_token(turns[0].text)
        return in_prompt or self._tokenizer.find_control_token(turns[-1].text, allow_markup=True)

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return the response."""
        return turns[-1].text

    def prompt_turns(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the prompt."""
        return (Turn("prompt", fill_required(self._data.prompt, row), trained=False),)

    def user_turn(self, text: str) -> tuple[Turn, ...]:
        """Return the prompt template filled with `text`."""
        return (Turn("prompt", fill_single_column(self._data.prompt, text), trained=False),)
