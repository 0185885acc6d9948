"""Render a conversation with the model's chat template, divided into the template's text and the turns' own texts.

A turn's own texts are its content, its thought, and the names and texts inside its tool calls. The template is rendered
with them, which gives the text of `apply_chat_template`, and once per shape of conversation with placeholders in their
place, which shows what text the template adds. A comparison shows where each own text is. This decides whether a span
is trained on and which control tokens it may contain. A conversation of n turns becomes n + 1 groups of spans:

    for every turn     stop, between, answer_prefix, own text, (template's text, own text), ...
                       where the text after a thought is two spans: what closes the thought, and the rest
    and at the end     stop, between, answer_prefix

`stop` ends the previous turn if it was the assistant's; after a tool call it begins with the end of the call.
`answer_prefix` is text that the template puts at the start of the assistant's answer: an empty thought, a space, the
beginning of a tool call. Identifiers of calls, names of arguments and numbers count as the template's text.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import chain, count
from typing import Any, NamedTuple

from tunesmith.core.errors import DataError
from tunesmith.core.records import Turn
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.messages import ROLES
from tunesmith.tasks.reasoning import THOUGHT, THOUGHT_BEGIN, THOUGHT_END, length_of_closing
from tunesmith.tasks.tokenizer import Span, TokenizerAdapter
from tunesmith.tasks.tool_calls import map_strings

# Letters only, so that no template strips or escapes them.
_PLACEHOLDER = "qzplaceholder{}xkj"
_PLACEHOLDERS = re.compile(r"qzplaceholder(\d+)xkj")


class _Shape(NamedTuple):
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


class _TemplateText(NamedTuple):
    """The template's text before a turn. Generation starts at `answer_prefix` if a generation prompt ends before it."""

    stop: Span
    between: Span
    answer_prefix: Span
    order: tuple[int, ...] = ()
    inner: tuple[str, ...] = ()


USER = _Shape("user")
ASSISTANT = _Shape("assistant")


class ConversationRenderer:
    """Renders conversations; the module's docstring explains how.

    Args:
        arguments: further variables of the chat template.
        masks_thoughts: whether training begins after an answer's thought, so that no token may cross its end.

    Raises:
        DataError: no conversation could be trained on with this template.
    """

    def __init__(
        self, tokenizer: TokenizerAdapter, arguments: Mapping[str, Any], *, masks_thoughts: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._arguments = arguments
        self._masks_thoughts = masks_thoughts
        self._literals = lru_cache(maxsize=4096)(self._find_literals)
        self._template_texts = lru_cache(maxsize=1024)(self._find_template_texts)
        self._stop, self.stop_id = self._find_stop()
        # Answers may contain markup such as <think>, which the model has to learn to write.
        self._answer_control_ids = tokenizer.markup_ids - {self.stop_id, tokenizer.eos_id}

    @cached_property
    def plain_answer_prefix(self) -> str:
        """The template's text at the start of an answer without a tool call."""
        return self._template_texts((USER, ASSISTANT), "", False)[1].answer_prefix.text

    def spans(self, turns: Sequence[Turn], tools: str, *, generation: bool) -> list[list[Span]]:
        """Render a conversation and divide it into groups of spans.

        The template must render turns unchanged, except for answers that are not trained on and, if `generation`, all
        earlier answers, because many templates remove the thoughts from them.

        Args:
            tools: the tools as JSON text, or empty.
        """
        must_match = [turn.role != "assistant" or (turn.trained and not generation) for turn in turns]
        shapes = tuple(map(_shape, turns))
        text = self.text(turns, tools, generation=generation)
        for _ in range(2):
            spans = self._match(text, turns, self._template_texts(shapes, tools, generation), must_match)
            if spans is not None:
                return spans
            # A template may contain today's date, and a server runs for more than a day.
            self._literals.cache_clear()
            self._template_texts.cache_clear()
        lost = any(turn.trained and THOUGHT in turn.keys for turn in turns[:-1])
        hint = "the template may remove the thoughts of earlier answers: set data.train_on: last" if lost else ""
        reason = "the chat template rewrites the conversation"
        raise RowProblem(reason, repr(text[-120:]), code="template-rewrites", hint=hint)

    def text(self, turns: Sequence[Turn], tools: str, *, generation: bool) -> str:
        """Return a conversation as `apply_chat_template` renders it; raise RowProblem if the template refuses it."""
        if not {turn.role for turn in turns} <= set(ROLES):  # templates put roles between control tokens
            raise RowProblem("a message has an unknown role", f"use one of {', '.join(ROLES)}", code="unknown-role")
        return self._render([self._message(turn, str) for turn in turns], tools, generation)

    def _render(self, messages: list[dict[str, Any]], tools: str, generation: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, generation=generation, tools=json.loads(tools) if tools else None, arguments=self._arguments
            )
        except Exception as error:  # a template is a program that can raise anything
            reason = "the chat template refuses the conversation"
            raise RowProblem(reason, str(error), code="template-refuses") from error

    def _message(self, turn: Turn, replaced: Callable[[str], str]) -> dict[str, Any]:
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
            return thought in self._render([{"role": "user", "content": "a"}, answer], "", False)
        except RowProblem:
            return False

    @cached_property
    def _empty_content(self) -> str | None:
        """The content of a message that has only tool calls: null if the template writes no calls after empty text."""
        name = _PLACEHOLDER.format(0)
        calls = [{"id": "abcdefghi", "type": "function", "function": {"name": name, "arguments": {}}}]
        for content in ("", None):
            called = {"role": "assistant", "content": content, "tool_calls": calls}
            try:
                text = self._render([{"role": "user", "content": "a"}, called], "", False)
            except RowProblem:
                continue
            if name in text:
                return content
        return ""

    def _match(
        self, text: str, turns: Sequence[Turn], literals: Sequence[_TemplateText], must_match: Sequence[bool]
    ) -> list[list[Span]] | None:
        """Divide a rendered conversation into spans by the template's text; return None if they do not match.

        Args:
            must_match: for each turn, whether the template must render it unchanged.
        """
        groups: list[list[Span]] = []
        position = 0
        for before, turn, following, is_fixed in zip(literals, turns, literals[1:], must_match, strict=False):
            position += len(before.stop.text) + len(before.between.text)
            own = own_texts(turn)
            has_thought = THOUGHT in turn.keys and before.order[0] == 0
            if is_fixed and (len(before.order) < len(own) or has_thought != (THOUGHT in turn.keys)):
                return None
            after = following.stop.text + following.between.text
            allowed = self._answer_control_ids if turn.role == "assistant" else frozenset()
            spans = [Span(own[number], allowed) for number in before.order]
            is_json = turn.role == "tool" or "tool_calls" in turn.keys
            content = self._match_turn(text, position, before, spans, after, is_fixed=is_fixed, is_json=is_json)
            if content is None:
                return None
            if has_thought and before.inner:
                content[2:3] = self._split_closing(content[2])
            groups.append([before.stop, before.between, *content])
            position += sum(len(span.text) for span in content)
        groups.append(list(literals[-1][:3]))
        return groups if "".join(span.text for span in chain.from_iterable(groups)) == text else None

    def _split_closing(self, span: Span) -> list[Span]:
        """Divide the template's text after a thought into the part that closes it and the rest."""
        cut = length_of_closing(span.text)
        rest = Span(span.text[cut:], span.allowed_control_ids, starts_generation=self._masks_thoughts)
        return [span._replace(text=span.text[:cut]), rest]

    def _match_turn(
        self,
        text: str,
        position: int,
        before: _TemplateText,
        own: Sequence[Span],
        after: str,
        *,
        is_fixed: bool,
        is_json: bool,
    ) -> list[Span] | None:
        """Return the spans of a turn, from its answer prefix on; None if they are not at `position` and before `after`.

        Args:
            own: the turn's own texts, in the order in which the template writes them.
            is_fixed: the texts must not be shortened.
            is_json: the texts may be escaped, because templates write them inside JSON.
        """
        spans: list[Span] = []
        prefix = before.answer_prefix
        for span, literal in zip(own, [*before.inner, after], strict=True):
            shortened = () if is_fixed else _shortened_renderings(text, position, prefix.text, span.text, literal)
            for prefix_text, content in chain(_renderings(prefix.text, span.text, is_json=is_json), shortened):
                if text.startswith(f"{prefix_text}{content}{literal}", position):
                    break
            else:
                return None
            spans += (prefix._replace(text=prefix_text), span._replace(text=content))
            position += len(prefix_text) + len(content)
            prefix = Span(literal, self._tokenizer.control_ids)
        return spans

    # ---- the template's text ----

    def _find_template_texts(
        self, shapes: tuple[_Shape, ...], tools: str, generation: bool
    ) -> tuple[_TemplateText, ...]:
        """Return the template's text around turns with these shapes: before each turn, and at the end."""
        control_ids = self._tokenizer.control_ids
        texts = []
        for index, literal in enumerate(self._literals(shapes, tools, generation)):
            stop = self._stop_after(shapes[index - 1], literal.before) if index else ""
            answer_prefix = None
            if index < len(shapes) and shapes[index].role == "assistant":
                answer_prefix = self._find_answer_prefix(shapes[: index + 1], tools, literal.before)
            between = literal.before[len(stop) : len(literal.before) - len(answer_prefix or "")]
            prefix_span = Span(answer_prefix or "", control_ids, starts_generation=answer_prefix is not None)
            spans = Span(stop, control_ids), Span(between, control_ids), prefix_span
            texts.append(_TemplateText(*spans, literal.order, literal.inner))
        return tuple(texts)

    def _stop_after(self, shape: _Shape, literal: str) -> str:
        """Return the part of the text after a turn that ends with the stop token; empty if none ends the turn."""
        if shape.role != "assistant":
            return ""
        if "tool_calls" not in shape.keys:
            return self._stop if literal.startswith(self._stop) else ""
        return literal[: self._tokenizer.end_of_control_token(literal, self.stop_id)]

    def _find_answer_prefix(self, shapes: tuple[_Shape, ...], tools: str, literal: str) -> str | None:
        """Return the template's text after the generation prompt, before the last of some turns.

        None if `literal`, the text before that turn, does not begin with the generation prompt.
        """
        try:
            prompt = self._literals(shapes[:-1], tools, True)[-1].before
            answer_prefix = literal[len(prompt) :]
            # A header in it would not be part of the answer. A tool call may begin with other control tokens.
            ids = self._tokenizer.encode_trusted(answer_prefix)
            has_header = not self._tokenizer.special_ids.isdisjoint(ids)
            if has_header and shapes[-1] != ASSISTANT:
                plain = (*shapes[:-1], ASSISTANT)
                literal_of_plain = self._literals(plain, tools, False)[-2].before
                has_header = self._find_answer_prefix(plain, tools, literal_of_plain) is None
        except RowProblem:
            return None
        return answer_prefix if literal.startswith(prompt) and not has_header else None

    def _find_literals(self, shapes: tuple[_Shape, ...], tools: str, generation: bool) -> tuple[_Literal, ...]:
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
            messages.append(self._message(turn, placeholder))
        pieces = _PLACEHOLDERS.split(self._render(messages, tools, generation))
        rendered = [int(number) for number in pieces[1::2]]
        times, turn_numbers = Counter(rendered), [owners[place][0] for place in rendered]
        for place, (index, _) in enumerate(owners):
            role = shapes[index].role
            if times[place] > 1 or (times[place] == 0 and (role != "assistant" or index not in turn_numbers)):
                raise RowProblem(f"the chat template drops or repeats the turn of the {role}", code="template-rewrites")
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
    """Return a turn's own texts, in the order in which `_message` replaces them."""
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


def _shape(turn: Turn) -> _Shape:
    if not turn.keys:
        return _Shape(turn.role)
    keys = {**turn.keys, **({THOUGHT: ""} if THOUGHT in turn.keys else {})}
    if calls := keys.get("tool_calls"):
        keys["tool_calls"] = [{**call, "function": map_strings(call["function"], lambda _: "")} for call in calls]
    return _Shape(turn.role, _has_content(turn), json.dumps(keys))


def _shortened_renderings(
    text: str, position: int, answer_prefix: str, content: str, after: str
) -> Iterator[tuple[str, str]]:
    """Yield (answer_prefix, content) of a content that the template may have shortened: everything up to `after`."""
    for prefix_text in dict.fromkeys((answer_prefix, "")):
        begin = position + len(prefix_text)
        if after and text.startswith(prefix_text, position) and (end := text.find(after, begin)) >= 0:
            shortened = text[begin:end]
            if shortened.strip() in content:
                yield prefix_text, shortened


def _renderings(answer_prefix: str, content: str, *, is_json: bool) -> Iterator[tuple[str, str]]:
    """Yield (answer_prefix, content) for the ways to render a text.

    It may be unchanged, with blanks or line breaks stripped, or escaped as in JSON. A template may also omit its
    `answer_prefix` before an answer that begins with a thought.
    """
    yield answer_prefix, content
    stripped = [strip(blanks) for blanks in (None, "\n") for strip in (content.strip, content.lstrip, content.rstrip)]
    escaped = [json.dumps(content, ensure_ascii=ascii)[1:-1] for ascii in (False, True)] if is_json else []
    for prefix_text in dict.fromkeys((answer_prefix, "")):
        for rendered in dict.fromkeys((content, *stripped, *escaped)):
            yield prefix_text, rendered
