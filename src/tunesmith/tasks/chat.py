"""Conversations through the model's own chat template; only the assistant's turns are learned.

The template is rendered twice: with the real turns, which gives the ids of `apply_chat_template`, and once per
sequence of roles with placeholders, which tells what the template itself wrote. From the two follow who wrote what,
and so what is learned and which control tokens are real. A conversation of n turns becomes 4n + 3 parts:

    for every turn     stop, between, lead, turn
    and at the end     stop, between, lead

`stop` ends the assistant's turn before, `lead` is what the template has the assistant write before its answer (an
empty thought, a blank). Learned are lead, turn and stop of an assistant's turn: all that follows the prompt in use.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.recipe.schema import ChatData
from tunesmith.recipe.template import columns_in
from tunesmith.tasks.base import (
    EmptyCell,
    MissingColumn,
    RowProblem,
    Task,
    fill_required,
    fill_single_column,
    fill_template,
)
from tunesmith.tasks.messages import ROLES, Message, parse_messages
from tunesmith.tasks.tokenizer import Span, TokenizerAdapter

# Letters only, so that no template trims or escapes them.
_PLACEHOLDER = "qzplaceholder{}xkj"
_PLACEHOLDERS = re.compile(r"qzplaceholder(\d+)xkj")


class _Literal(NamedTuple):
    """What a template writes before a turn; `lead` opens an answer if it does so as when it is asked for one."""

    stop: Span
    between: Span
    lead: Span


class ChatTask(Task):
    """One renderer for chats. See the module's docstring for how it is known who wrote what."""

    def __init__(self, data: ChatData, tokenizer: TokenizerAdapter) -> None:
        if not tokenizer.has_chat_template:
            raise RecipeError(
                "the model has no chat template", where="data.task",
                hint="add ChatML's with `model.chat_markup: chatml`, use `task: completion`, or take a chat model",
            )  # fmt: skip
        self._data = data
        self._tokenizer = tokenizer
        self._literals = lru_cache(maxsize=4096)(self._literals_of)
        self._frame = lru_cache(maxsize=1024)(self._frame_of)
        self._stop, stop_id = self._end_of_turn()
        self.stop_ids = tuple(dict.fromkeys([stop_id, *([tokenizer.eos_id] if tokenizer.eos_id is not None else [])]))
        # An answer may hold such as <think>, which the model has to learn to write.
        self._answer_writes = tokenizer.markup_ids - set(self.stop_ids)

    def parse(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the turns; what follows the last answer to learn is left out, as nothing is learned from it."""
        messages = self._with_system(row, self._listed(row) if self._data.messages else self._pair(row))
        learned = [i for i, message in enumerate(messages) if message.role == "assistant" and message.learned]
        if not learned:
            none = not any(message.role == "assistant" for message in messages)
            raise RowProblem("has no answer of the assistant" if none else "has no answer that is to be learned")
        if self._data.train_on == "last":
            learned = learned[-1:]
        return tuple(
            Turn(message.role, message.text, trained=index in learned)
            for index, message in enumerate(messages[: learned[-1] + 1])
        )

    def prompt_turns(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the conversation without an answer at its end."""
        listed = (
            self._listed(row) if self._data.messages else [Message("user", fill_required(self._data.prompt or "", row))]
        )
        messages = self._with_system(row, listed)
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages:
            raise RowProblem("has no turn to answer")
        return tuple(Turn(message.role, message.text, trained=False) for message in messages)

    def _with_system(self, row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
        """Return the messages after the system turn that the recipe gives the row, if it is not empty."""
        text = fill_template(self._data.system, row) if self._data.system is not None else ""
        if not text.strip():
            return messages
        if messages and messages[0].role == "system":
            raise RowProblem("the row has a system turn, and the recipe sets one too")
        return [Message("system", text), *messages]

    def _pair(self, row: Mapping[str, Any]) -> list[Message]:
        assert self._data.prompt is not None
        assert self._data.response is not None
        return [
            Message("user", fill_required(self._data.prompt, row)),
            Message("assistant", fill_required(self._data.response, row)),
        ]

    def _listed(self, row: Mapping[str, Any]) -> list[Message]:
        column = self._data.messages
        assert column is not None
        if column not in row:
            raise MissingColumn(column)
        if row[column] is None:
            raise EmptyCell(column)
        return parse_messages(row[column], column)

    def render(self, turns: Sequence[Turn], example_id: str = "") -> TokenizedExample:
        """Return the ids of the whole conversation, the trained spans proved by decoding them."""
        parts = self._page(turns, generation=False)
        asked = self._page(turns[:-1], generation=True)[:-1]
        if asked != parts[: len(asked)]:
            raise RowProblem("the chat template writes the prompt differently in training and in use")
        ids, starts, _ = self._tokenizer.encode_after_prompt(parts, len(asked))
        trained = [False] * len(ids)
        for lead in (4 * index + 2 for index, turn in enumerate(turns) if turn.trained):
            if not parts[lead].starts_generation:
                raise RowProblem("the chat template opens the assistant's turn differently in training and in use")
            if not parts[lead + 2].text:
                raise RowProblem(
                    "the chat template does not end every turn of the assistant, so it could not learn to stop"
                    + ("; set data.train_on: last" if lead < 4 * len(turns) - 2 else "")
                )
            first, last = starts[lead], starts[lead + 3]
            wanted = "".join(part.text for part in parts[lead : lead + 3])
            said = self._tokenizer.decodes_to(ids[first:last], wanted, before=ids[first - 1 : first])
            if not said or ids[last - 1] != self.stop_ids[0]:
                raise RowProblem("the trained tokens do not decode to the answer", repr(wanted[:80]))
            trained[first:last] = [True] * (last - first)
        return TokenizedExample(example_id, tuple(ids), tuple(trained))

    def find_control_token(self, turns: Sequence[Turn]) -> str | None:
        """Return the first control token that a turn spells."""
        found = (self._tokenizer.find_control_token(turn.text, allow_markup=turn.role == "assistant") for turn in turns)
        return next(filter(None, found), None)

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids up to where the assistant's last answer begins."""
        asked = turns[:-1] if turns[-1].role == "assistant" else turns
        return self._tokenizer.encode(self._page(asked, generation=True)).ids

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return the assistant's last answer."""
        return turns[-1].text

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the answer as text, without what the template itself has the model write before it."""
        text = self._tokenizer.decode([i for i in ids if i not in self.stop_ids])
        return text.removeprefix(self._frame(("user", "assistant"), False)[1].lead.text).strip()

    def user_turn(self, text: str) -> tuple[Turn, ...]:
        """Return a user's turn, after the recipe's system turn where that is fixed text."""
        system = self._data.system
        fixed = [Turn("system", fill_template(system, {}), trained=False)] if system and not columns_in(system) else []
        return (*fixed, Turn("user", fill_single_column(self._data.prompt, text), trained=False))

    # ---- what the template writes ----

    def _page(self, turns: Sequence[Turn], *, generation: bool) -> list[Span]:
        """Return what the template writes, in parts.

        The template has to write all turns unchanged, but for answers that are not learned and those before a question
        that is asked now: many templates remove the thoughts from all answers but the last.
        """
        fixed = [turn.role != "assistant" or (turn.trained and not generation) for turn in turns]
        roles = tuple(turn.role for turn in turns)
        text = self._text(roles, [turn.text for turn in turns], generation)
        parts = self._matched(text, turns, self._frame(roles, generation), fixed)
        if parts is None:
            # A template may write today's date, and a server sees more than one day.
            self._literals.cache_clear()
            self._frame.cache_clear()
            parts = self._matched(text, turns, self._frame(roles, generation), fixed)
        if parts is None:
            raise RowProblem("the chat template rewrites the conversation", repr(text[-120:]))
        return parts

    def _text(self, roles: Sequence[str], contents: Sequence[str], generation: bool) -> str:
        if not set(roles) <= set(ROLES):  # templates write roles between control tokens
            raise RowProblem("a message has an unknown role", f"known are {', '.join(ROLES)}")
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            return self._tokenizer.apply_chat_template(messages, generation=generation)
        except Exception as error:  # a template is somebody's program
            raise RowProblem("the chat template refuses the conversation", str(error)) from error

    def _matched(
        self, text: str, turns: Sequence[Turn], frame: Sequence[_Literal], fixed: Sequence[bool]
    ) -> list[Span] | None:
        """Divide what the template wrote by what it writes around placeholders; None if that does not fit.

        Args:
            fixed: for each turn, whether the template has to write it unchanged.
        """
        parts: list[Span] = []
        position = 0
        for (stop, between, lead), turn, following, unchanged in zip(frame, turns, frame[1:], fixed, strict=False):
            position += len(stop.text) + len(between.text)
            after = following.stop.text + following.between.text
            ways = chain(_ways(lead.text, turn.text), () if unchanged else _shortened(text, position, lead.text, after))
            for opening, written in ways:
                if text.startswith(f"{opening}{written}{after}", position) and (
                    unchanged or written.strip() in turn.text
                ):
                    break
            else:
                return None
            writes = self._answer_writes if turn.role == "assistant" else frozenset()
            parts += (stop, between, lead._replace(text=opening), Span(written, writes))
            position += len(opening) + len(written)
        parts += frame[-1]
        return parts if "".join(part.text for part in parts) == text else None

    def _frame_of(self, roles: tuple[str, ...], generation: bool) -> tuple[_Literal, ...]:
        """Return what the template writes around turns of these roles: one literal more than turns."""
        template = self._tokenizer.control_ids
        frame = []
        for index, literal in enumerate(self._literals(roles, generation)):
            ended = roles[index - 1 : index] == ("assistant",) and literal.startswith(self._stop)
            stop = self._stop if ended else ""
            lead = self._lead(roles[:index], literal) if roles[index : index + 1] == ("assistant",) else None
            between = literal[len(stop) : len(literal) - len(lead or "")]
            opening = Span(lead or "", template, starts_generation=lead is not None)
            frame.append(_Literal(Span(stop, template), Span(between, template), opening))
        return tuple(frame)

    def _lead(self, before: tuple[str, ...], literal: str) -> str | None:
        """Return what the template adds here to what it writes when asked for an answer; None if that differs."""
        try:
            asked = self._literals(before, True)[-1]
        except RowProblem:
            return None
        lead = literal[len(asked) :]
        # A header of its own would be no part of an answer.
        writes_header = not self._tokenizer.special_ids.isdisjoint(self._tokenizer.encode_trusted(lead))
        return lead if literal.startswith(asked) and not writes_header else None

    def _literals_of(self, roles: tuple[str, ...], generation: bool) -> tuple[str, ...]:
        text = self._text(roles, [_PLACEHOLDER.format(index) for index in range(len(roles))], generation)
        pieces = _PLACEHOLDERS.split(text)
        kept = [int(number) for number in pieces[1::2]]
        if kept != list(range(len(roles))):
            lost = [role for i, role in enumerate(roles) if kept.count(i) != 1]
            did = f"drops or repeats the turn of the {lost[0]}" if lost else "writes the turns in another order"
            raise RowProblem(f"the chat template {did}")
        return tuple(pieces[0::2])

    def _end_of_turn(self) -> tuple[str, int]:
        """Return the text from the end of an answer to its stop token, and that token's id."""
        where = "tokenizer chat_template"
        try:
            literal = self._literals(("user", "assistant"), False)[-1]
        except RowProblem as problem:
            raise DataError(str(problem), where=where, hint="the model could not learn from any row") from problem
        found = self._tokenizer.find_stop_token(literal)
        if found is None:
            raise DataError(
                "the chat template ends the assistant's turn with no token that the model could learn to stop at",
                where=where,
                hint="use `task: completion`, or a model whose template ends every answer with a control token",
            )
        token, end = found
        return literal[:end], token


def _shortened(text: str, position: int, lead: str, after: str) -> Iterator[tuple[str, str]]:
    """Yield (lead, text) that the template may have written for a turn: all up to what it writes after it."""
    for opening in dict.fromkeys((lead, "")):
        begin = position + len(opening)
        if after and text.startswith(opening, position) and (end := text.find(after, begin)) >= 0:
            yield opening, text[begin:end]


def _ways(lead: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield how a template may write a turn: as it is, or without blanks or line breaks at its ends.

    An answer that brings a thought of its own stands in the place of the template's lead, too.
    """
    yield lead, text
    trimmed = [strip(blanks) for blanks in (None, "\n") for strip in (text.strip, text.lstrip, text.rstrip)]
    for opening in dict.fromkeys((lead, "")):
        for written in dict.fromkeys((text, *trimmed)):
            yield opening, written
