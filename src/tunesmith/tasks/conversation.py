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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from tunesmith.core.records import Turn
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.messages import ROLES
from tunesmith.tasks.reasoning import OPEN_THOUGHT, THOUGHT, THOUGHT_END, length_of_closing
from tunesmith.tasks.template_text import TemplateReader, TemplateText, own_texts, shape_of
from tunesmith.tasks.tokenizer import Span, TokenizerAdapter

_NO_SPANS = [Span("")] * 4


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
        self._masks_thoughts = masks_thoughts
        self._reader = TemplateReader(tokenizer, arguments)
        self.stop_id = self._reader.stop_id
        # DeepSeek-R1's template begins answers with <think> in generation, and drops the thoughts of finished ones.
        self.opens_thought = self._reader.opens_thought
        self.needs_short_ids = self._reader.needs_short_ids
        self._drops_opened_thought = self.opens_thought and not self._reader.plain_answer.starts_generation
        self.plain_answer_prefix = THOUGHT_END if self._drops_opened_thought else self._reader.plain_answer.text
        # Answers may contain markup such as <think>, which the model has to learn to write.
        self._answer_control_ids = tokenizer.markup_ids - {self.stop_id, tokenizer.eos_id}

    def spans(self, turns: Sequence[Turn], tools: str, *, generation: bool) -> list[list[Span]]:
        """Render a conversation and divide it into groups of spans.

        The template must render turns unchanged, except for answers that are not trained on and, if `generation`, all
        earlier answers, because many templates remove the thoughts from them.

        Args:
            tools: the tools as JSON text, or empty.

        Raises:
            RowProblem: the template refuses the conversation, or does not render it unchanged.
        """
        if self._drops_opened_thought and not generation and turns[-1].trained:
            prompt = self.spans(turns[:-1], tools, generation=True)
            if OPEN_THOUGHT.search(_text(prompt)):
                return self._continue_thought(turns, prompt)
        try:
            return self._spans(turns, tools, generation=generation)
        except RowProblem as problem:
            merged = _with_system_in_last_question(turns) if problem.code == "template-rewrites" else None
            if merged is None:
                raise
            *earlier, answer, end = [_NO_SPANS, *self._spans(merged, tools, generation=generation)]
            if generation:
                if _text([*earlier, answer, end]) != self.text(turns, tools, generation=True):
                    raise
                return [*earlier, answer, end]
            prompt = self.spans(turns[:-1], tools, generation=True)
            if _text(prompt) != _text([*earlier, answer[:2]]):
                raise
            if any(turn.trained for turn in turns[:-1]):
                raise RowProblem(problem.reason, code=problem.code, hint="set data.train_on: last") from problem
            return [*prompt[:-1], [*prompt[-1][:2], *answer[2:]], end]

    def _continue_thought(self, turns: Sequence[Turn], prompt: Sequence[list[Span]]) -> list[list[Span]]:
        """Return the spans of a conversation whose last answer goes on inside the thought that its prompt has opened.

        An answer without a thought ends it at once.
        """
        *earlier, answer = turns
        if any(turn.trained for turn in earlier):
            reason = "the chat template drops the thoughts of earlier answers"
            raise RowProblem(reason, code="template-differs", hint="set data.train_on: last")
        if "tool_calls" in answer.keys or "</think>" in answer.text:
            reason = "the chat template begins the answer with a thought, and the row's answer has another beginning"
            hint = "set data.reasoning, so that the thought in the content is found" * ("</think>" in answer.text)
            raise RowProblem(reason, code="template-differs", hint=hint)
        control_ids, own_ids = self._tokenizer.control_ids, self._answer_control_ids
        before = [Span(THOUGHT_END, control_ids, starts_generation=True)]
        if thought := answer.keys.get(THOUGHT):
            line = Span("" if _text(prompt).endswith("\n") else "\n", control_ids, starts_generation=True)
            closing = self._split_closing(Span(THOUGHT_END, control_ids), starts_generation=self._masks_thoughts)
            before = [line, Span(thought, own_ids), *closing]
        answer_spans = [*prompt[-1][:2], *before, Span(answer.text.strip(), own_ids)]
        return [*prompt[:-1], answer_spans, self._reader.end_of_answer]

    def _spans(self, turns: Sequence[Turn], tools: str, *, generation: bool) -> list[list[Span]]:
        must_match = [turn.role != "assistant" or (turn.trained and not generation) for turn in turns]
        shapes = tuple(map(shape_of, turns))
        text = self.text(turns, tools, generation=generation)
        for _ in range(2):
            spans = self._match(text, turns, self._reader.template_texts(shapes, tools, generation), must_match)
            if spans is not None:
                return spans
            self._reader.forget()  # a server runs for more than a day
        lost = any(turn.trained and THOUGHT in turn.keys for turn in turns[:-1])
        hint = "the template may remove the thoughts of earlier answers: set data.train_on: last" if lost else ""
        reason = "the chat template rewrites the conversation"
        raise RowProblem(reason, repr(text[-120:]), code="template-rewrites", hint=hint)

    def text(self, turns: Sequence[Turn], tools: str, *, generation: bool) -> str:
        """Return a conversation as `apply_chat_template` renders it; raise RowProblem if the template refuses it."""
        if not {turn.role for turn in turns} <= set(ROLES):  # templates put roles between control tokens
            raise RowProblem("a message has an unknown role", f"use one of {', '.join(ROLES)}", code="unknown-role")
        return self._reader.render([self._reader.message(turn, str) for turn in turns], tools, generation)

    def writes_date(self, turns: Sequence[Turn], tools: str) -> bool:
        """Return whether the template writes the current date into a conversation."""
        return self._reader.writes_date([self._reader.message(turn, str) for turn in turns], tools)

    def _match(
        self, text: str, turns: Sequence[Turn], literals: Sequence[TemplateText], must_match: Sequence[bool]
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
            starts_generation = before.answer_prefix.starts_generation and turn.trained
            content = self._match_turn(
                text, position, before, spans, after,
                is_fixed=is_fixed, is_json=is_json, starts_generation=starts_generation,
            )  # fmt: skip
            if content is None:
                return None
            if has_thought and before.inner:
                content[2:3] = self._split_closing(content[2], starts_generation=self._masks_thoughts and turn.trained)
            groups.append([before.stop, before.between, *content])
            position += sum(len(span.text) for span in content)
        groups.append(list(literals[-1][:3]))
        return groups if _text(groups) == text else None

    def _split_closing(self, span: Span, *, starts_generation: bool) -> list[Span]:
        """Divide the template's text after a thought into the part that closes it and the rest."""
        cut = length_of_closing(span.text)
        rest = Span(span.text[cut:], span.allowed_control_ids, starts_generation=starts_generation)
        return [span._replace(text=span.text[:cut]), rest]

    def _match_turn(
        self,
        text: str,
        position: int,
        before: TemplateText,
        own: Sequence[Span],
        after: str,
        *,
        is_fixed: bool,
        is_json: bool,
        starts_generation: bool,
    ) -> list[Span] | None:
        """Return the spans of a turn, from its answer prefix on; None if they are not at `position` and before `after`.

        Args:
            own: the turn's own texts, in the order in which the template writes them.
            is_fixed: the texts must not be shortened.
            is_json: the texts may be escaped, because templates write them inside JSON.
            starts_generation: no token may cross the beginning of the turn, because it is a trained answer. Other
                answers have the ids that the tokenizer gives a whole conversation, in training as in generation.
        """
        spans: list[Span] = []
        prefix = before.answer_prefix._replace(starts_generation=starts_generation)
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


def _text(groups: Sequence[Sequence[Span]]) -> str:
    return "".join(span.text for span in chain.from_iterable(groups))


def _with_system_in_last_question(turns: Sequence[Turn]) -> list[Turn] | None:
    """Return a conversation whose last user's turn begins with the system turn's text; None if it has none.

    So do Mistral's templates in generation. If an answer follows, they leave the system turn out.
    """
    asked = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
    if not asked or turns[0].role != "system":
        return None
    question = replace(turns[asked], text=f"{turns[0].text}\n\n{turns[asked].text}")
    return [*turns[1:asked], question, *turns[asked + 1 :]]


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
