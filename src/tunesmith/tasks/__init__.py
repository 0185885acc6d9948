"""How text becomes tokens, one file a task; the same three functions for training, evaluation and serving.

row -> parse -> turns    turns -> render -> Tokens    turns -> prompt -> ids that a model continues
"""

from tunesmith.core.errors import RecipeError
from tunesmith.recipe.schema import ChatData, CompletionData, Seq2SeqData, TextData
from tunesmith.tasks.base import Task
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.completion import CompletionTask
from tunesmith.tasks.seq2seq import Seq2SeqTask
from tunesmith.tasks.text import TextTask
from tunesmith.tasks.tokenizer import TokenizerAdapter


def task_for(data: ChatData | CompletionData | Seq2SeqData | TextData, tokenizer: TokenizerAdapter) -> Task:
    """Return the task that a recipe's `data` section describes; raise RecipeError where the model cannot do it."""
    if tokenizer.has_encoder != isinstance(data, Seq2SeqData):
        raise RecipeError(
            f"the model has {'an' if tokenizer.has_encoder else 'no'} encoder, so it cannot do `task: {data.task}`",
            where="data.task",
            hint="use `task: seq2seq`"
            if tokenizer.has_encoder
            else "use `task: chat` or `completion`, or such as FLAN-T5",
        )
    if isinstance(data, Seq2SeqData):
        return Seq2SeqTask(data, tokenizer)
    if isinstance(data, ChatData):
        return ChatTask(data, tokenizer)
    if isinstance(data, CompletionData):
        return CompletionTask(data, tokenizer)
    return TextTask(data, tokenizer)
