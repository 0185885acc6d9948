"""The task `chat`: conversations in the model's chat template. Only the assistant's turns are trained on.

The loss covers the text that the template puts at the start of an answer, the answer and its stop token: everything
that follows the prompt in generation. Without `train_on_end`, the stop token is there but not trained on.
`tasks/conversation.py` finds these spans.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.recipe.columns import message_columns
from tunesmith.recipe.schema import ChatData
from tunesmith.recipe.template import columns_in
from tunesmith.tasks.base import (
    EmptyCell,
    MissingColumn,
    RowProblem,
    Task,
    cell_value,
    fill_required,
    fill_single_column,
    fill_template,
    is_empty_cell,
)
from tunesmith.tasks.chat_template import DATE_FUNCTION
from tunesmith.tasks.conversation import ConversationRenderer
from tunesmith.tasks.messages import parse_messages
from tunesmith.tasks.reasoning import THOUGHT, find_thought, without_thought
from tunesmith.tasks.tokenizer import Span, TokenizerAdapter
from tunesmith.tasks.tool_calls import TOOLS_ROLE, iterate_texts, read_tools, shorten_call_ids, template_texts


class ChatTask(Task):
    """The task `chat`. The module's docstring explains how the template's text is distinguished from the turns."""

    def __init__(self, data: ChatData, tokenizer: TokenizerAdapter) -> None:
        if not tokenizer.has_chat_template:
            hint = "add ChatML's with `model.chat_markup: chatml`, use `task: completion`, or choose a chat model"
            raise RecipeError("the model has no chat template", where="data.task", code="no-chat-template", hint=hint)
        self._data = data
        self._tokenizer = tokenizer
        date = {DATE_FUNCTION: data.template_date.strftime} if data.template_date else {}
        self._renderer = ConversationRenderer(
            tokenizer, {**data.template_arguments, **date}, masks_thoughts=data.reasoning == "mask"
        )
        self._refuse_unread_variables()
        self._fixed_tools = self._read_fixed_tools()
        stops = [self._renderer.stop_id, *([tokenizer.eos_id] if tokenizer.eos_id is not None else [])]
        self.stop_ids = tuple(dict.fromkeys(stops))
        self.answer_lead, self.removes_thoughts = self._renderer.plain_answer_prefix, bool(data.reasoning)

    def _refuse_unread_variables(self) -> None:
        """Raise RecipeError if the recipe sets a variable that the chat template never reads."""
        data = self._data
        variables = {f"data.template_arguments.{name}": name for name in data.template_arguments}
        variables |= {"data.tools": "tools"} if data.tools else {}
        variables |= {"data.template_date": DATE_FUNCTION} if data.template_date else {}
        unread = self._tokenizer.unread_by_chat_template(variables.values(), with_tools=bool(data.tools))
        for where, name in variables.items():
            if name in unread:
                message = f"the model's chat template never reads the variable `{name}`"
                raise RecipeError(message, where=where, code="no-effect")

    def _read_fixed_tools(self) -> str:
        """Return the recipe's list of tools as JSON text; empty if the rows have them, or there are none."""
        if not self._data.tools or isinstance(self._data.tools, str):
            return ""
        try:
            return self._tools_text(list(self._data.tools))
        except RowProblem as problem:
            raise RecipeError(str(problem), where="data.tools", code=problem.code, hint=problem.hint) from problem

    def parse(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the turns up to the last trained answer; nothing is trained on after it."""
        turns = self._turns(row, {"user": self._data.prompt, "assistant": self._data.response})
        trained = [i for i, turn in enumerate(turns) if turn.trained]
        if not trained:
            has_answer = any(turn.role == "assistant" for turn in turns)
            reason = "has no answer that is to be trained on" if has_answer else "has no answer of the assistant"
            raise RowProblem(reason, code="no-answer")
        if self._data.train_on == "last":
            trained = trained[-1:]
        return tuple(replace(turn, trained=i in trained) for i, turn in enumerate(turns[: trained[-1] + 1]))

    def prompt_turns(self, row: Mapping[str, Any]) -> tuple[Turn, ...]:
        """Return the conversation to answer: all turns, without the last one if it is the assistant's."""
        turns = self._turns(row, {"user": self._data.prompt})
        if turns and turns[-1].role == "assistant":
            turns = turns[:-1]
        if all(turn.role == TOOLS_ROLE for turn in turns):
            raise RowProblem("has no turn to answer", code="no-answer")
        return tuple(replace(turn, trained=False) for turn in turns)

    def _turns(self, row: Mapping[str, Any], templates: Mapping[str, str | None]) -> list[Turn]:
        """Return the turns of a row, after the recipe's system turn if it has text, and the row's tools if it has any.

        All answers are trained.

        Args:
            templates: the template of each role's turn, if the recipe names no column of messages.
        """
        if self._data.messages:
            turns = self._read_messages(row, needs_answer="assistant" in templates)
        else:
            texts = {role: fill_required(template or "", row) for role, template in templates.items()}
            turns = [Turn(role, text, trained=role == "assistant") for role, text in texts.items()]
        turns = [find_thought(turn, self._data.reasoning) for turn in turns]
        if self._renderer.needs_short_ids:
            turns = shorten_call_ids(turns)
        for text in chain.from_iterable(map(template_texts, turns)):
            self._refuse_control_token(text)
        system = fill_template(self._data.system or "", row)
        if not system.strip():
            return [*self._tools_turn(row), *turns]
        if turns and turns[0].role == "system":
            raise RowProblem("both the row and the recipe have a system turn", code="wrong-messages")
        return [Turn("system", system, trained=False), *self._tools_turn(row), *turns]

    def _tools_turn(self, row: Mapping[str, Any]) -> list[Turn]:
        """Return the turn that holds the tools of a row, if it has any."""
        if not isinstance(self._data.tools, str):
            return []
        try:
            value = cell_value(row, self._data.tools)
        except MissingColumn:
            return []
        text = "" if is_empty_cell(value) else self._tools_text(value)
        return [Turn(TOOLS_ROLE, text, trained=False)] if text else []

    def _tools_text(self, value: Any) -> str:
        """Return tools as JSON text, empty if there are none; raise RowProblem if they contain control tokens."""
        tools = read_tools(value)
        for text in iterate_texts(tools):
            self._refuse_control_token(text)
        return json.dumps(tools, ensure_ascii=False) if tools else ""

    def _refuse_control_token(self, text: str) -> None:
        """Raise RowProblem if a text that becomes part of the template's text contains a control token."""
        if token := self._tokenizer.find_control_token(text):
            reason = "tools, or names in a tool call, contain a control token"
            raise RowProblem(reason, f"{token} in {text[:80]!r}", code="control-token")

    def _read_messages(self, row: Mapping[str, Any], *, needs_answer: bool) -> list[Turn]:
        """Return the turns of all columns of messages; only answers of the last column are trained."""
        turns: list[Turn] = []
        for index, column in enumerate(message_columns(self._data)):
            try:
                following = parse_messages(row, column, self._data.roles, with_thoughts=bool(self._data.reasoning))
            except EmptyCell:
                if index == 0 or needs_answer:
                    raise
                break
            turns = [*(replace(turn, trained=False) for turn in turns), *following]
        return turns

    def render(self, turns: Sequence[Turn], example_id: str = "") -> TokenizedExample:
        """Tokenize a conversation; raise RowProblem if the trained ids do not decode to the answers."""
        tools, turns = self._split_off_tools(turns)
        groups = self._renderer.spans(turns, tools, generation=False)
        spans, group_at = _join(groups), [0, *accumulate(map(len, groups))]
        prompt = _join(self._renderer.spans(turns[:-1], tools, generation=True))[:-1]
        differs = "the chat template renders the {} differently in training and in generation"
        if prompt != spans[: len(prompt)]:
            raise RowProblem(differs.format("prompt"), code="template-differs")
        ids, starts, _ = self._tokenizer.encode_with_fixed_prefix(spans, len(prompt))
        trained = [False] * len(ids)
        for index in (index for index, turn in enumerate(turns) if turn.trained):
            prefix_at, stop_at = group_at[index] + 2, group_at[index + 1]
            hint = "set data.train_on: last" if index < len(turns) - 1 else ""
            if not spans[prefix_at].starts_generation:
                raise RowProblem(differs.format("prompt of an answer"), code="template-differs", hint=hint)
            if not spans[stop_at].text:
                reason = "the chat template has no stop token after every turn of the assistant"
                raise RowProblem(reason, code="no-stop-token", hint=hint)
            is_masked = self._data.reasoning == "mask" and THOUGHT in turns[index].keys
            answer_at = prefix_at + 3 if is_masked else prefix_at  # after the prefix, the thought and its closing
            first, last = starts[answer_at], starts[stop_at + 1]
            expected = "".join(span.text for span in spans[answer_at : stop_at + 1])
            is_decoded = self._tokenizer.decodes_to(ids[first:last], expected, before=ids[first - 1 : first])
            if not is_decoded or ids[last - 1] != self.stop_ids[0]:
                raise self._tokenizer.decode_problem(ids[first:last], expected, "answer")
            end = last if self._data.train_on_end else last - 1  # the stop token
            trained[first:end] = [True] * (end - first)
        return TokenizedExample(example_id, tuple(ids), tuple(trained))

    def _split_off_tools(self, turns: Sequence[Turn]) -> tuple[str, list[Turn]]:
        """Return the tools of a conversation as JSON text, empty if there are none, and its messages."""
        tools = next((turn.text for turn in turns if turn.role == TOOLS_ROLE), self._fixed_tools)
        return tools, [turn for turn in turns if turn.role != TOOLS_ROLE]

    def find_control_token(self, turns: Sequence[Turn]) -> str | None:
        """Return the first control token in the text of a turn."""
        find = self._tokenizer.find_control_token
        return next(filter(None, (find(turn.full_text, allow_markup=turn.role == "assistant") for turn in turns)), None)

    def changes_daily(self, turns: Sequence[Turn]) -> bool:
        """Return whether the ids of a row depend on the current date, because the chat template writes it."""
        tools, turns = self._split_off_tools(turns)
        return self._data.template_date is None and self._renderer.writes_date(turns, tools)

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids up to the assistant's last answer."""
        tools, turns = self._split_off_tools(turns)
        before_answer = turns[:-1] if turns[-1].role == "assistant" else turns
        before_answer = [replace(turn, trained=False) for turn in before_answer]
        return self._tokenizer.encode(_join(self._renderer.spans(before_answer, tools, generation=True))).ids

    def encode_conversation(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of a prompt whose earlier turns the template may rewrite, such as by removing their thoughts.

        Raises:
            RowProblem: the template refuses the conversation, or rewrites one whose text contains control tokens.
        """
        try:
            return self.encode_prompt(turns)
        except RowProblem as problem:
            if problem.code != "template-rewrites" or self.find_control_token(turns) is not None:
                raise
        tools, turns = self._split_off_tools(turns)
        return self._tokenizer.encode_trusted(self._renderer.text(turns, tools, generation=True))

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return the assistant's last answer; one with tool calls is the text that the template writes for it."""
        if "tool_calls" not in turns[-1].keys:
            return turns[-1].text
        tools, turns = self._split_off_tools(turns)
        answer, end = self._renderer.spans(turns, tools, generation=False)[-2:]
        stop_token = self._tokenizer.decode([self.stop_ids[0]])
        return self._without_prefix("".join(span.text for span in (*answer[2:], end[0])).removesuffix(stop_token))

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without stop tokens and without the text that the template puts before it.

        With `data.reasoning`, its thought is left out as well.
        """
        return self._without_prefix(self._tokenizer.decode([i for i in ids if i not in self.stop_ids]))

    def _without_prefix(self, answer: str) -> str:
        answer = answer.removeprefix(self.answer_lead)
        if self._data.reasoning:
            answer = without_thought(answer, is_opened=self._renderer.opens_thought)
        return answer.strip()

    def user_turn(self, text: str) -> tuple[Turn, ...]:
        """Return a user's turn, after the recipe's system turn if that has no columns."""
        template = self._data.system
        is_fixed = bool(template) and not columns_in(str(template))
        system = [Turn("system", fill_template(str(template), {}), trained=False)] if is_fixed else []
        return (*system, Turn("user", fill_single_column(self._data.prompt, text), trained=False))


def _join(groups: Sequence[Sequence[Span]]) -> list[Span]:
    return list(chain.from_iterable(groups))
