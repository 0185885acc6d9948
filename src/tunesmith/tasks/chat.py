"""Conversations through the model's own chat template; only the assistant's turns are learned.

The template is rendered twice: with the real turns, which gives exactly the ids of `apply_chat_template`, and once
per sequence of roles with placeholders, which tells what the template itself wrote. From the two follow the span of
every turn, and a way to encode turns apart where one of them spells a control token.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from jinja2 import TemplateError

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.records import Tokens, Turn
from tunesmith.recipe.schema import ChatData, columns_in
from tunesmith.tasks.base import MissingColumn, RowProblem, Task, ask, fill
from tunesmith.tasks.tokenizer import Codec

_ROLES = ("system", "user", "assistant", "tool")
# Letters only, so that no template trims or escapes them; long enough that no row holds one by chance.
_PLACEHOLDER = "qzplaceholder{:03d}xkj"
_PLACEHOLDERS = re.compile(r"qzplaceholder(\d{3})xkj")


@dataclass(frozen=True, slots=True)
class _Span:
    """Characters [start, end) that the model writes in one turn: what follows the prompt, its stop token included."""

    start: int
    end: int


class ChatTask(Task):
    """One renderer for chats. See the module's docstring for how spans are found and proved."""

    def __init__(self, data: ChatData, codec: Codec) -> None:
        if not codec.has_template:
            raise RecipeError(
                "the model has no chat template", where="data.task", hint="use `task: completion`, or a chat model"
            )
        self._data = data
        self._codec = codec
        self._frame = lru_cache(maxsize=512)(self._frame_of)
        self.stop_ids = tuple(
            dict.fromkeys([self._end_of_turn[1], *([codec.eos_id] if codec.eos_id is not None else [])])
        )

    def parse(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the turns; what follows the last answer is left out, as nothing is learned from it."""
        turns = self._listed(row) if self._data.messages else self._pair(row)
        if self._data.system is not None:
            if turns and turns[0][0] == "system":
                raise RowProblem("the row has a system turn, and the recipe sets one too")
            turns.insert(0, ("system", fill(self._data.system, row)))
        while turns and turns[-1][0] != "assistant":
            turns.pop()
        if not turns:
            raise RowProblem("has no answer of the assistant")
        last = len(turns) - 1
        return tuple(
            Turn(role, text, trained=role == "assistant" and (self._data.train_on == "all" or index == last))
            for index, (role, text) in enumerate(turns)
        )

    def _pair(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        assert self._data.prompt is not None and self._data.response is not None
        return [("user", fill(self._data.prompt, row)), ("assistant", fill(self._data.response, row))]

    def _listed(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        column = self._data.messages
        assert column is not None
        if column not in row:
            raise MissingColumn(column)
        messages = row[column]
        if isinstance(messages, str):
            try:
                messages = json.loads(messages)  # a CSV can hold a list only as JSON text
            except ValueError:
                raise RowProblem(f"cell `{column}` is not a list of messages") from None
        if not isinstance(messages, list):
            raise RowProblem(f"cell `{column}` is not a list of messages")
        return [_message(message, index) for index, message in enumerate(messages)]

    def render(self, turns: Sequence[Turn], example_id: str = "") -> Tokens:
        """Return the ids of the whole conversation, the trained spans proved by decoding them."""
        texts = self._written(turns, generation=False)
        spans = self._spans(turns, texts)
        text = "".join(texts)
        ids, ends = self._codec.markup_with_ends(text)
        trained = _tokens_in(spans, ends)
        if self._is_tainted(turns, texts, ids, ends) or not self._proved(text, ids, trained, spans):
            ids, trained = self._apart(turns, texts, spans)
            if not self._proved(text, ids, trained, spans):
                raise RowProblem("the trained tokens do not decode to the answer", repr(turns[-1].text[:80]))
        prompt = self.prompt(turns)
        first = len(prompt)
        if ids[:first] != prompt or not trained[first]:
            raise RowProblem("the chat template writes the prompt differently in training and in use")
        return Tokens(example_id, tuple(ids), tuple(trained))

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids up to where the assistant's last answer begins."""
        asked = turns[:-1] if turns[-1].role == "assistant" else turns
        texts = self._written(asked, generation=True)
        ids, ends = self._codec.markup_with_ends("".join(texts))
        return self._apart(asked, texts, [])[0] if self._is_tainted(asked, texts, ids, ends) else ids

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return the assistant's last answer."""
        return turns[-1].text

    def answer(self, ids: Sequence[int]) -> str:
        """Return the answer as text."""
        return self._codec.decode([i for i in ids if i not in self.stop_ids]).strip()

    def question(self, text: str) -> tuple[Turn, ...]:
        """Return a user's turn, after the recipe's system turn where that is fixed text."""
        system = self._data.system
        fixed = [Turn("system", fill(system, {}), trained=False)] if system and not columns_in(system) else []
        return (*fixed, Turn("user", ask(self._data.prompt, text), trained=False))

    # ---- what the template writes ----

    def _written(self, turns: Sequence[Turn], *, generation: bool) -> list[str]:
        """Return literal, turn, literal, ..., literal: their concatenation is what the template writes."""
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            text = self._codec.chat_text(messages, generation=generation)
        except (TemplateError, TypeError, ValueError) as error:
            raise RowProblem("the chat template refuses the conversation", str(error)) from error
        literals = self._frame(tuple(turn.role for turn in turns), generation)
        for contents in ([turn.text for turn in turns], [turn.text.strip() for turn in turns]):
            texts = [part for pair in zip(literals, [*contents, ""], strict=True) for part in pair][:-1]
            if "".join(texts) == text:
                return texts
        raise RowProblem("the chat template rewrites the conversation", repr(text[-120:]))

    def _frame_of(self, roles: tuple[str, ...], generation: bool) -> tuple[str, ...]:
        """Return what the template writes around turns of these roles: one literal more than turns."""
        messages = [{"role": role, "content": _PLACEHOLDER.format(i)} for i, role in enumerate(roles)]
        text = self._codec.chat_text(messages, generation=generation)
        pieces = _PLACEHOLDERS.split(text)
        kept = [int(number) for number in pieces[1::2]]
        if kept != list(range(len(roles))):
            lost = next((role for i, role in enumerate(roles) if kept.count(i) != 1), "order")
            raise DataError(
                f"the chat template drops or repeats the {lost}'s turn",
                where="tokenizer chat_template",
                hint="the model could not learn from such rows; use a model whose template keeps every turn",
            )
        return tuple(pieces[0::2])

    @cached_property
    def _end_of_turn(self) -> tuple[str, int]:
        """The text from the end of an answer to its stop token, and that token's id."""
        literal = self._frame(("user", "assistant"), False)[-1]
        ids, ends = self._codec.markup_with_ends(literal)
        for token, end in zip(ids, ends, strict=True):
            if token in self._codec.special_ids:
                return literal[:end], token
        raise DataError(
            "the chat template ends the assistant's turn with no token that the model could learn to stop at",
            where="tokenizer chat_template",
        )

    @cached_property
    def _generation_literal(self) -> str:
        """What the template writes when it hands the turn to the assistant."""
        asked = self._frame(("user",), True)[-1]
        plain = self._frame(("user",), False)[-1]
        return asked[len(plain) :] if asked.startswith(plain) else asked

    # ---- which of it is learned ----

    def _spans(self, turns: Sequence[Turn], texts: list[str]) -> list[_Span]:
        spans, position = [], 0
        for index, turn in enumerate(turns):
            before, content, after = texts[2 * index : 2 * index + 3]
            start = position + len(before)
            end = start + len(content)
            position = end
            if not turn.trained:
                continue
            # Some templates put an empty thought between prompt and answer; the model has to write that itself.
            handed = before.rfind(self._generation_literal)
            if handed >= 0:
                start -= len(before) - handed - len(self._generation_literal)
            if not after.startswith(self._end_of_turn[0]):
                raise RowProblem("the chat template does not end the assistant's turn")
            spans.append(_Span(start, end + len(self._end_of_turn[0])))
        return spans

    def _is_tainted(self, turns: Sequence[Turn], texts: list[str], ids: list[int], ends: list[int]) -> bool:
        """Say whether a turn holds a control token, which only the template may write."""
        control = [(end, token) for token, end in zip(ids, ends, strict=True) if token in self._codec.control_ids]
        position = 0
        for index, text in enumerate(texts):
            start, position = position, position + len(text)
            if index % 2 == 0:
                continue
            # An answer may hold such as <think>, which the model has to learn to write.
            forbidden = self._codec.special_ids if _writes(turns, index) else self._codec.control_ids
            if any(start < end <= position and token in forbidden for end, token in control):
                return True
        return False

    def _apart(self, turns: Sequence[Turn], texts: list[str], spans: list[_Span]) -> tuple[list[int], list[bool]]:
        """Encode what the template wrote and what people wrote apart."""
        cuts = sorted({edge for span in spans for edge in (span.start, span.end)})
        ids: list[int] = []
        trained: list[bool] = []
        position = 0
        for index, text in enumerate(texts):
            for piece in _cut(text, position, cuts):
                if index % 2:
                    new = self._codec.personal(piece, allow_markup=_writes(turns, index))
                else:
                    new = self._codec.markup(piece)
                ids += new
                learned = any(span.start <= position < span.end for span in spans)
                trained += [learned] * len(new)
                position += len(piece)
        return ids, trained

    def _proved(self, text: str, ids: list[int], trained: list[bool], spans: list[_Span]) -> bool:
        """Say whether the trained tokens decode to just the spans."""
        decoded = self._codec.decode([token for token, learned in zip(ids, trained, strict=True) if learned])
        wanted = "".join(text[span.start : span.end] for span in spans)
        # Some tokenizers write a blank before a word themselves.
        return decoded == wanted or (len(spans) == 1 and decoded.strip() == wanted.strip())


def _message(message: Any, index: int) -> tuple[str, str]:
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise RowProblem("a message is not {role, content}", f"message {index + 1}")
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise RowProblem("a message has an unknown role", f"{role!r}; known are {', '.join(_ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise RowProblem("a message has no text", f"message {index + 1}")
    return role, content


def _writes(turns: Sequence[Turn], index: int) -> bool:
    """Say whether the assistant wrote the text at an (odd) index of literal, turn, literal, ..."""
    return turns[index // 2].role == "assistant"


def _tokens_in(spans: list[_Span], ends: list[int]) -> list[bool]:
    """Mark the tokens that end inside a span."""
    return [any(span.start < end <= span.end for span in spans) for end in ends]


def _cut(text: str, position: int, cuts: list[int]) -> list[str]:
    """Cut a text that starts at `position` at the given places."""
    inside = [cut - position for cut in cuts if position < cut < position + len(text)]
    edges = [0, *inside, len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False) if b > a]
