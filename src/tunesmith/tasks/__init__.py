"""Turn rows into tokens. One module per task, with the same functions for training, evaluation and serving.

row -> parse -> turns -> render -> TokenizedExample    for training
turns -> encode_prompt -> the prompt's token ids       for generation
"""

from collections.abc import Callable
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.schema import ChatData, CompletionData, Seq2SeqData, TextData
from tunesmith.tasks.base import Task
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.completion import CompletionTask
from tunesmith.tasks.seq2seq import Seq2SeqTask
from tunesmith.tasks.text import TextTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

_TASKS: dict[type, Callable[[Any, TokenizerAdapter], Task]] = {
    ChatData: ChatTask, CompletionData: CompletionTask, Seq2SeqData: Seq2SeqTask, TextData: TextTask,
}  # fmt: skip


def task_for(data: ChatData | CompletionData | Seq2SeqData | TextData, tokenizer: TokenizerAdapter) -> Task:
    """Return the task of a recipe's `data` section; raise RecipeError if the model does not support it."""
    if tokenizer.has_encoder != isinstance(data, Seq2SeqData):
        encoder, hint = "an encoder", "use `task: seq2seq`"
        if not tokenizer.has_encoder:
            encoder = "no encoder"
            hint = "use `task: chat` or `task: completion`, or an encoder-decoder model such as FLAN-T5"
        message = f"the model has {encoder}, so it does not support `task: {data.task}`"
        raise RecipeError(message, where="data.task", code="task-unsupported", hint=hint)
    return _TASKS[type(data)](data, tokenizer)
