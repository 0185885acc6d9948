"""Ask a model by hand, through the very prompt and generation that training and evaluation used."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Turn
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.model.adapter_set import AdapterSet
from tunesmith.model.adapters import open_model
from tunesmith.model.generate import generate
from tunesmith.model.load import machine
from tunesmith.model.quantized import trained_quantization
from tunesmith.recipe.rows import FileSource
from tunesmith.recipe.schema import ChatData, CompletionData, Data, Seq2SeqData, TextData
from tunesmith.report.wording import visible
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.markup import codec_of
from tunesmith.tasks.tokenizer import Codec


@dataclass
class Chatter:
    """A model that answers. `turns` is the conversation so far (chat models only)."""

    model: Any
    task: Task
    keeps_turns: bool
    turns: list[Turn] = field(default_factory=list)

    def ask(self, text: str, *, max_new_tokens: int = 256, beams: int = 1) -> str:
        """Return the answer to `text`; a chat model remembers what was said before."""
        asked = [*self.turns, *(self.task.question(text) if not self.turns else (Turn("user", text, trained=False),))]
        ids = self.task.prompt(asked)
        [answer] = generate(
            self.model,
            [ids],
            stop_ids=self.task.stop_ids,
            max_new_tokens=max_new_tokens,
            opening=self.task.opening_ids,
            beams=beams,
        )
        said = self.task.answer(answer.ids)
        if self.keeps_turns:
            self.turns = [*asked, Turn("assistant", said, trained=False)]
        return said


def open_chatter(reference: str, *, adapters: AdapterSet | None = None) -> Chatter:
    """Load a model by any reference; one that tunesmith tuned brings its task along.

    Args:
        adapters: a set in which `reference` is a name; that adapter is put to use, and answers until another one is.

    Raises:
        RecipeError: there is no such model.
    """
    found = adapters.folder(reference) if adapters else resolve(reference)
    codec = codec_of(found)
    data = _data_of(found, codec)
    quantized = trained_quantization(found) is not None
    model = adapters.use(reference) if adapters else open_model(found, machine(quantized=quantized)).eval()
    return Chatter(model, task_for(data, codec), keeps_turns=isinstance(data, ChatData))


def _data_of(found: ModelFolder, codec: Codec) -> ChatData | CompletionData | Seq2SeqData | TextData:
    """Return the task a model was tuned for; for others what its encoder or its chat template is for, or plain text."""
    source = FileSource(file="none")
    stored = found.card.get("data")
    if isinstance(stored, dict):
        data: ChatData | CompletionData | Seq2SeqData | TextData
        data = TypeAdapter(Data).validate_python({**stored, "source": source})
        # Texts that brought markup along were conversations: what a person says is put in a turn, as the base gets it.
        if not (isinstance(data, TextData) and data.control_tokens and codec.has_template):
            return data
    if codec.has_encoder:
        return Seq2SeqData(source=source, task="seq2seq", prompt="{source}", response="{target}")
    if codec.has_template:
        return ChatData(source=source, task="chat", messages="messages")
    return TextData(source=source, task="text", text="text", prompt_tokens=2**31)


def answers(reference: str, prompts: Sequence[str], *, max_new_tokens: int = 256, beams: int = 1) -> list[str]:
    """Return one answer to each prompt, each asked on its own."""
    if not prompts:
        raise RecipeError("no prompt to answer", hint="give --prompt TEXT")
    chatter = open_chatter(reference)
    said = []
    for prompt in prompts:
        chatter.turns = []
        said.append(chatter.ask(prompt, max_new_tokens=max_new_tokens, beams=beams))
    return said


def converse(model: str, *, max_new_tokens: int) -> None:
    """Print answers to the lines of standard input, until an empty one or its end."""
    chatter = open_chatter(model)
    while True:
        try:
            text = input("you> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not text.strip():
            return
        print(visible(chatter.ask(text, max_new_tokens=max_new_tokens)), flush=True)
