"""How text becomes tokens, one file a task; the same three functions for training, evaluation and serving.

row -> parse -> turns    turns -> render -> Tokens    turns -> prompt -> ids that a model continues
"""

from tunesmith.recipe.schema import ChatData, CompletionData, TextData
from tunesmith.tasks.base import Task
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.completion import CompletionTask
from tunesmith.tasks.text import TextTask
from tunesmith.tasks.tokenizer import Codec


def task_for(data: ChatData | CompletionData | TextData, codec: Codec) -> Task:
    """Return the task that a recipe's `data` section describes."""
    if isinstance(data, ChatData):
        return ChatTask(data, codec)
    if isinstance(data, CompletionData):
        return CompletionTask(data, codec)
    return TextTask(data, codec)
