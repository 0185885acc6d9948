"""Find the text that a chat template adds around the turns of a conversation, by rendering placeholders in their place.

A turn's own texts are its content, its thought, and the names and texts inside its tool calls. The rest of the rendered
conversation is the template's text, which depends only on the shapes of the turns.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date
from functools import cached_property, lru_cache
from itertools import count
from typing import Any, NamedTuple

from tunesmith.core.errors import DataError
from tunesmith.core.records import Turn
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.chat_template import DATE_FUNCTION
from tunesmith.tasks.reasoning import OPEN_THOUGHT, THOUGHT, THOUGHT_BEGIN, THOUGHT_END
from tunesmith.tasks.tokenizer import Span, TokenizerAdapter
from tunesmith.tasks.tool_calls import map_strings

# Letters only, so that no template strips or escapes them.
_PLACEHOLDER = "qzplaceholder{}xkj"
_PLACEHOLDERS = re.compile(r"qzplaceholder(\d+)xkj")


class Shape(NamedTuple):
    """What decides the template's text around a turn: all of its message but its own texts."""

    role: str
    has_text: bool = True
    keys: str = ""


class _Literal(NamedTuple):
    """The template's text around a turn's own texts.

    Attributes:
        before: the text before the first of them.
        order: their numbers, in the order in which the template writes them.
        inner: the texts between them.
    """

    before: str
    order: tuple[int, ...]
    inner: tuple[str, ...]


class TemplateText(NamedTuple):
    """The template's text before a turn. Generation starts at `answer_prefix` if a generation prompt ends before it."""

    stop: Span
    between: Span
    answer_prefix: Span
    order: tuple[int, ...] = ()
    inner: tuple[str, ...] = ()


USER = Shape("user")
ASSISTANT = Shape("assistant")


class TemplateReader:
    """Renders messages, and finds the template's text around turns of the same shapes.

    Args:
        arguments: further variables of the chat template.

    Raises:
        DataError: no conversation could be trained on with this template.
    """

    def __init__(self, tokenizer: TokenizerAdapter, arguments: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._arguments = arguments
        self._literals = lru_cache(maxsize=4096)(self._find_literals)
        self.template_texts = lru_cache(maxsize=1024)(self._find_template_texts)
        self._stop, self.stop_id = self._find_stop()

    def forget(self) -> None:
        """Forget the texts that were found: a template may contain today's date."""
        self._literals.cache_clear()
        self.template_texts.cache_clear()

    @property
    def plain_answer(self) -> Span:
        """The template's text at the start of an answer without a tool call."""
        return self.template_texts((USER, ASSISTANT), "", False)[1].answer_prefix

    @property
    def end_of_answer(self) -> list[Span]:
        """The template's text after an answer without a tool call, at the end of a conversation."""
        return list(self.template_texts((USER, ASSISTANT), "", False)[-1][:3])

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the prompt of an answer ends with the beginning of a thought."""
        try:
            return bool(OPEN_THOUGHT.search(self._literals((USER,), "", True)[-1].before))
        except RowProblem:
            return False

    def render(self, messages: list[dict[str, Any]], tools: str, generation: bool, *, today: date | None = None) -> str:
        """Return messages as `apply_chat_template` renders them; raise RowProblem if the template refuses them."""
        arguments = self._arguments if today is None else {**self._arguments, DATE_FUNCTION: today.strftime}
        try:
            return self._tokenizer.apply_chat_template(
                messages, generation=generation, tools=json.loads(tools) if tools else None, arguments=arguments
            )
        except Exception as error:  # a template is a program that can raise anything
            reason = "the chat template refuses the conversation"
            raise RowProblem(reason, str(error), code="template-refuses") from error

    def writes_date(self, messages: list[dict[str, Any]], tools: str) -> bool:
        """Return whether the template writes the current date into a conversation."""
        days = date(2001, 2, 3), date(2012, 11, 10)
        return len({self.render(messages, tools, False, today=day) for day in days}) > 1

    def message(self, turn: Turn, replaced: Callable[[str], str]) -> dict[str, Any]:
        """Return the message of a turn, with each of its own texts replaced, in a fixed order."""
        if not turn.keys:
            return {"role": turn.role, "content": replaced(turn.text)}
        keys, begin = dict(turn.keys), ""
        if THOUGHT in keys:
            keys[THOUGHT] = replaced(keys[THOUGHT])
            if not self._reads_thoughts:
                begin = f"{THOUGHT_BEGIN}{keys.pop(THOUGHT)}{THOUGHT_END}"
        content = begin + replaced(turn.text) if _has_content(turn) else begin or self._empty_content
        message = {"role": turn.role, "content": content}
        calls = [
            {**call, "function": map_strings(call["function"], replaced)} for call in turn.keys.get("tool_calls", ())
        ]
        return {**message, **keys, **({"tool_calls": calls} if calls else {})}

    @cached_property
    def _reads_thoughts(self) -> bool:
        """Whether the template writes the thought of an answer that has it in a key."""
        thought = _PLACEHOLDER.format(0)
        answer = {"role": "assistant", "content": "b", THOUGHT: thought}
        try:
            return thought in self.render([{"role": "user", "content": "a"}, answer], "", False)
        except RowProblem:
            return False

    @cached_property
    def needs_short_ids(self) -> bool:
        """Whether the template refuses calls whose ids do not have nine characters, as Mistral's do."""
        return self._renders_call(self._empty_content) and not self._renders_call(
            self._empty_content, "call_abcdefghijkl"
        )

    @cached_property
    def _empty_content(self) -> str | None:
        """The content of a message that has only tool calls: null if the template writes no calls after empty text."""
        return next((content for content in ("", None) if self._renders_call(content)), "")

    def _renders_call(self, content: str | None, identifier: str = "abcdefghi") -> bool:
        """Return whether the template writes a call of a message with this content."""
        name = _PLACEHOLDER.format(0)
        calls = [{"id": identifier, "type": "function", "function": {"name": name, "arguments": {}}}]
        called = {"role": "assistant", "content": content, "tool_calls": calls}
        try:
            return name in self.render([{"role": "user", "content": "a"}, called], "", False)
        except RowProblem:
            return False

    def _find_template_texts(self, shapes: tuple[Shape, ...], tools: str, generation: bool) -> tuple[TemplateText, ...]:
        """Return the template's text around turns with these shapes: before each turn, and at the end."""
        control_ids = self._tokenizer.control_ids
        texts = []
        literals = self._literals(shapes, tools, generation)
        for index, literal in enumerate(literals):
            stop = self._stop_after(shapes[index - 1], literal.before) if index else ""
            answer_prefix = None
            if index < len(shapes) and shapes[index].role == "assistant":
                answer_prefix = self._find_answer_prefix(shapes[: index + 1], tools, literals[: index + 1])
            between = literal.before[len(stop) : len(literal.before) - len(answer_prefix or "")]
            prefix_span = Span(answer_prefix or "", control_ids, starts_generation=answer_prefix is not None)
            spans = Span(stop, control_ids), Span(between, control_ids), prefix_span
            texts.append(TemplateText(*spans, literal.order, literal.inner))
        return tuple(texts)

    def _stop_after(self, shape: Shape, literal: str) -> str:
        """Return the part of the text after a turn that ends with the stop token; empty if none ends the turn."""
        if shape.role != "assistant":
            return ""
        if "tool_calls" not in shape.keys:
            return self._stop if literal.startswith(self._stop) else ""
        return literal[: self._tokenizer.end_of_control_token(literal, self.stop_id)]

    def _find_answer_prefix(self, shapes: tuple[Shape, ...], tools: str, literals: tuple[_Literal, ...]) -> str | None:
        """Return the template's text after the generation prompt, before the last of some turns.

        Args:
            literals: the template's text before each of these turns.

        Returns:
            None if these turns do not begin with the prompt from which the last of them is generated.
        """
        try:
            *earlier, prompt = self._literals(shapes[:-1], tools, True)
            if tuple(earlier) != literals[:-1] or not literals[-1].before.startswith(prompt.before):
                return None
            answer_prefix = literals[-1].before[len(prompt.before) :]
            # A header would not be part of the answer. A channel after a generation prompt is, and so is the control
            # token at the beginning of a tool call.
            ids = self._tokenizer.encode_trusted(answer_prefix)
            if self._tokenizer.special_ids.isdisjoint(ids) or prompt != self._literals(shapes[:-1], tools, False)[-1]:
                return answer_prefix
            plain = (*shapes[:-1], ASSISTANT)
            if (
                shapes[-1] == ASSISTANT
                or self._find_answer_prefix(plain, tools, self._literals(plain, tools, False)[:-1]) is None
            ):
                return None
        except RowProblem:
            return None
        return answer_prefix

    def _find_literals(self, shapes: tuple[Shape, ...], tools: str, generation: bool) -> tuple[_Literal, ...]:
        """Return the template's text before, in and after turns with these shapes, by rendering placeholders."""
        owners: list[tuple[int, int]] = []
        messages = []
        numbers = count()

        def placeholder(_: str) -> str:
            return _PLACEHOLDER.format(next(numbers))

        for index, shape in enumerate(shapes):
            keys = json.loads(shape.keys) if shape.keys else {}
            turn = Turn(shape.role, "x" if shape.has_text else "", trained=False, keys=keys)
            owners += [(index, number) for number in range(len(own_texts(turn)))]
            messages.append(self.message(turn, placeholder))
        pieces = _PLACEHOLDERS.split(self.render(messages, tools, generation))
        rendered = [int(number) for number in pieces[1::2]]
        times, turn_numbers = Counter(rendered), [owners[place][0] for place in rendered]
        for place, (index, _) in enumerate(owners):
            role = shapes[index].role
            if times[place] > 1 or (times[place] == 0 and (role != "assistant" or index not in turn_numbers)):
                reason = f"the chat template drops or repeats the turn of the {role}"
                hint = "write its text into the user's turn" if role == "system" else ""
                raise RowProblem(reason, code="template-rewrites", hint=hint)
        if turn_numbers != sorted(turn_numbers):
            raise RowProblem("the chat template changes the order of the turns", code="template-rewrites")
        literals = []
        for index in range(len(shapes)):
            places = [at for at, number in enumerate(turn_numbers) if number == index]
            order = tuple(owners[rendered[at]][1] for at in places)
            inner = tuple(pieces[2 * at] for at in places[1:])
            literals.append(_Literal(pieces[2 * places[0]], order, inner))
        return (*literals, _Literal(pieces[-1], (), ()))

    def _find_stop(self) -> tuple[str, int]:
        """Return the text from the end of an answer to its stop token, and the id of that token."""
        where = "tokenizer chat_template"
        try:
            literal = self._literals((USER, ASSISTANT), "", False)[-1].before
        except RowProblem as problem:
            hint = "no row could be trained on; choose another model or `task: completion`"
            raise DataError(str(problem), where=where, code=problem.code, hint=hint) from problem
        stop_token = self._tokenizer.find_stop_token(literal)
        if stop_token is None:
            hint = "use `task: completion`, or a model whose template ends every answer with a control token"
            message = "the chat template ends answers without a control token that the model could learn to stop at"
            raise DataError(message, where=where, code="no-stop-token", hint=hint)
        token, end = stop_token
        return literal[:end], token


def _has_content(turn: Turn) -> bool:
    return not turn.keys.get("tool_calls") or bool(turn.text.strip())


def own_texts(turn: Turn) -> list[str]:
    """Return a turn's own texts, in the order in which `TemplateReader.message` replaces them."""
    if not turn.keys:
        return [turn.text]
    texts = [turn.keys[THOUGHT]] if THOUGHT in turn.keys else []
    texts += [turn.text] if _has_content(turn) else []

    def collect(text: str) -> str:
        texts.append(text)
        return text

    for call in turn.keys.get("tool_calls", ()):
        map_strings(call["function"], collect)
    return texts


def shape_of(turn: Turn) -> Shape:
    """Return what decides the template's text around a turn."""
    if not turn.keys:
        return Shape(turn.role)
    keys = {**turn.keys, **({THOUGHT: ""} if THOUGHT in turn.keys else {})}
    if calls := keys.get("tool_calls"):
        keys["tool_calls"] = [{**call, "function": map_strings(call["function"], lambda _: "")} for call in calls]
    return Shape(turn.role, _has_content(turn), json.dumps(keys))
