"""The prompts of one model: messages, rows and texts become the ids that the model was trained to answer.

Messages go through the task and the chat template of training, so that their ids are those of training. What the
recipe adds in training is added here too: its system turn, its template arguments and, for `task: completion`, its
prompt template. Text of a user never becomes a control token.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.records import Turn
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.chatter import Chatter, open_prompts
from tunesmith.inference.request import StopStrings
from tunesmith.inference.text_stream import TextStream
from tunesmith.recipe.schema import ChatData, TextData
from tunesmith.recipe.template import columns_in
from tunesmith.serve.errors import ApiError, from_tunesmith, invalid
from tunesmith.tasks.base import RowProblem

SystemPolicy = Literal["recipe", "client"]
"""Whose system turn a conversation gets if the client sends none: the recipe's, or none."""

Messages = Sequence[tuple[str, str]]
"""(role, text) of each message."""


class Prompts:
    """The prompts and texts of one model. All methods can be called from any thread.

    Args:
        system: what to do if a client sends no system turn.

    Raises:
        RecipeError: the model's prompts cannot be encoded.
    """

    def __init__(self, folder: ModelFolder, *, system: SystemPolicy = "recipe") -> None:
        self._chatter: Chatter = open_prompts(folder)
        self._system = system
        # The tokenizer caches words, and renders templates, in Python.
        self._lock = threading.Lock()

    @property
    def task(self) -> str:
        """The recipe's task: `chat`, `completion`, `text` or `seq2seq`."""
        return str(self._chatter.data.task)

    @property
    def is_trained(self) -> bool:
        """Whether tunesmith tuned the model, so that its prompt template is known."""
        return self._chatter.is_trained_prompt

    @property
    def takes_messages(self) -> bool:
        """Whether the model answers chat completions; a model of texts only continues them."""
        return not isinstance(self._chatter.data, TextData)

    @property
    def system_turn(self) -> str | None:
        """The recipe's system turn, which may have columns."""
        return self._chatter.data.system if isinstance(self._chatter.data, ChatData) else None

    @property
    def template(self) -> str | None:
        """The recipe's prompt template, if the recipe has one."""
        data = self._chatter.data
        return None if isinstance(data, TextData) or not self.is_trained else data.prompt

    @property
    def has_text_in_template(self) -> bool:
        """Whether the recipe's prompt is more than one column."""
        return self.template is not None and self.template.strip() not in (f"{{{name}}}" for name in self.columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the recipe's prompt and system turn."""
        return self._chatter.columns if self.is_trained else ()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return self._chatter.task.stop_ids

    @property
    def decoder_prefix_ids(self) -> tuple[int, ...]:
        """The ids that the decoder of an encoder-decoder model starts with; empty for other models."""
        return self._chatter.task.decoder_prefix_ids

    @property
    def default_limit(self) -> int:
        """The limit of an answer in tokens if a request has none: that of the evaluation, else 256."""
        return self._chatter.recorded.max_new_tokens

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._chatter.tokenizer.vocab_size

    def encode_messages(self, messages: Messages) -> tuple[int, ...]:
        """Return the ids of a conversation, as they were in training.

        Raises:
            ApiError: the model takes no messages, or its template refuses these.
        """
        if not self.takes_messages:
            raise invalid("messages", "this model continues texts: use /v1/completions", "wrong_endpoint")
        return self._encode(self._turns_of_messages(messages), "messages")

    def encode_row(self, row: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the ids of a row's prompt, filled into the recipe's templates.

        Raises:
            ApiError: the recipe's prompt is unknown, or the row lacks one of its columns.
        """
        if not self.is_trained:
            raise invalid("row", "tunesmith did not tune this model, so it has no prompt template", "no_template")
        try:
            turns = self._chatter.turns_of_row(self._chatter.recorded.renamed(row))
        except (RecipeError, DataError) as error:
            raise from_tunesmith(error, "row") from None
        return self._encode(turns, "row")

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text to continue, after the tokens that the tokenizer puts at the beginning.

        Raises:
            ApiError: the text has a control token. It would be plain text here, which is rarely what was meant.
        """
        data = self._chatter.data
        if isinstance(data, TextData):
            if not data.control_tokens:
                self._refuse_control_token(text)
            return self._encode(self._chatter.task.user_turn(text), "prompt")
        self._refuse_control_token(text)
        return self.continued_ids(text)

    def continued_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text after the tokens that the tokenizer puts at the beginning."""
        tokenizer = self._chatter.tokenizer
        with self._lock:
            return (*tokenizer.prefix_ids, *tokenizer.encode_untrusted(text))

    def tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text as the tokenizer itself encodes it; control tokens keep their function."""
        tokenizer = self._chatter.tokenizer
        with self._lock:
            return [*(tokenizer.prefix_ids if add_special_tokens else ()), *tokenizer.encode_trusted(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, including control tokens."""
        return self._chatter.tokenizer.decode(ids)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token."""
        return self._chatter.tokenizer.token_bytes(token)

    def answer_text(self, ids: Sequence[int], stop: StopStrings | None) -> str:
        """Return the text of an answer to a conversation, as the evaluation reads it."""
        return _cut(self._chatter.task.decode_answer(ids), stop)

    def answer_stream(self, stop: StopStrings | None) -> TextStream:
        """Return the text of `answer_text` as its tokens come."""
        return TextStream.of_task(self._chatter.task, stop)

    def continued_stream(self, stop: StopStrings | None) -> TextStream:
        """Return the text of `continued_text` as its tokens come."""
        return TextStream(lambda ids: self.continued_text(ids, None), stops=stop)

    def continued_text(self, ids: Sequence[int], stop: StopStrings | None) -> str:
        """Return the text that continues a text, with its blanks."""
        return _cut(self.decode([token for token in ids if token not in self.stop_ids]), stop)

    def _turns_of_messages(self, messages: Messages) -> tuple[Turn, ...]:
        turns = tuple(Turn(role, text, trained=False) for role, text in messages)
        if not isinstance(self._chatter.data, ChatData):
            return self._filled_template(turns)
        has_system = any(turn.role == "system" for turn in turns)
        template = self.system_turn
        if self._system == "client" or has_system or not template:
            return turns
        if columns := columns_in(template):
            problem = (
                f"the recipe's system turn has the columns {', '.join(columns)}: send a system message, or a `row`"
            )
            raise invalid("messages", problem, "system_turn")
        return (Turn("system", template, trained=False), *turns)

    def _filled_template(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        """Return the prompt of a model without conversations: its template, filled with the only message."""
        if len(turns) > 1:
            problem = f"this model answers one message of the user (`task: {self.task}`), not a conversation"
            raise invalid("messages", problem, "wrong_messages")
        if len(self.columns) > 1:
            raise invalid("messages", f"send a `row` with the columns {', '.join(self.columns)}", "prompt_columns")
        return self._chatter.task.user_turn(turns[0].text)

    def _encode(self, turns: Sequence[Turn], param: str) -> tuple[int, ...]:
        try:
            with self._lock:
                return self._chatter.encode_prompt(turns).ids
        except DataError as error:
            raise from_tunesmith(error, param) from None
        except RowProblem as problem:
            raise invalid(param, str(problem), problem.code.replace("-", "_")) from None

    def _refuse_control_token(self, text: str) -> None:
        if token := self._chatter.tokenizer.find_control_token(text):
            message = f"has the control token {token}: send messages to /v1/chat/completions, or token ids"
            raise ApiError(400, f"`prompt`: {message}", param="prompt", reason="control_token")


def _cut(text: str, stop: StopStrings | None) -> str:
    return stop.cut(text) if stop else text
