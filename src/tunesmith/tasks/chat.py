"""The task `chat`: conversations in the model's chat template. Only the assistant's turns are trained on.

The template is rendered twice: with the real turns, which gives the text of `apply_chat_template`, and once per
sequence of roles with placeholders, which shows what text the template adds. A comparison shows which spans are from
the template and which are from a turn. This decides whether a span is trained on and which control tokens it may
contain. A conversation of n turns becomes 4n + 3 spans:

    for every turn     stop, between, answer_prefix, turn
    and at the end     stop, between, answer_prefix

`stop` ends the previous turn if it was the assistant's. `answer_prefix` is text that the template puts at the start of
the assistant's answer (an empty thought, a space). The loss covers `answer_prefix`, `turn` and `stop` of an assistant's
turn: everything that follows the prompt in generation.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.records import TokenizedExample, Turn
from tunesmith.recipe.columns import message_columns
from tunesmith.recipe.schema import ChatData
from tunesmith.recipe.template import columns_in
from tunesmith.tasks.base import EmptyCell, RowProblem, Task, fill_required, fill_single_column, fill_template
from tunesmith.tasks.messages import ROLES, parse_messages
from tunesmith.tasks.tokenizer import Span, TokenizerAdapter

# Letters only, so that no template strips or escapes them.
_PLACEHOLDER = "qzplaceholder{}xkj"
_PLACEHOLDERS = re.compile(r"qzplaceholder(\d+)xkj")


class _TemplateText(NamedTuple):
    """The template's text before a turn. Generation starts at `answer_prefix` if a generation prompt ends before it."""

    stop: Span
    between: Span
    answer_prefix: Span


class ChatTask(Task):
    """The task `chat`. The module's docstring explains how the template's text is distinguished from the turns."""

    def __init__(self, data: ChatData, tokenizer: TokenizerAdapter) -> None:
        if not tokenizer.has_chat_template:
            hint = "add ChatML's with `model.chat_markup: chatml`, use `task: completion`, or choose a chat model"
            raise RecipeError("the model has no chat template", where="data.task", code="no-chat-template", hint=hint)
        self._data = data
        self._tokenizer = tokenizer
        self._literals = lru_cache(maxsize=4096)(self._find_literals)
        self._template_texts = lru_cache(maxsize=1024)(self._find_template_texts)
        self._stop, stop_id = self._find_stop()
        if unread := tokenizer.unread_by_chat_template(data.template_arguments):
            where = f"data.template_arguments.{unread[0]}"
            raise RecipeError("the model's chat template never reads this variable", where=where, code="no-effect")
        self.stop_ids = tuple(dict.fromkeys([stop_id, *([tokenizer.eos_id] if tokenizer.eos_id is not None else [])]))
        # Answers may contain markup such as <think>, which the model has to learn to write.
        self._answer_control_ids = tokenizer.markup_ids - set(self.stop_ids)

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
        if not turns:
            raise RowProblem("has no turn to answer", code="no-answer")
        return tuple(replace(turn, trained=False) for turn in turns)

    def _turns(self, row: Mapping[str, Any], templates: Mapping[str, str | None]) -> list[Turn]:
        """Return the turns of a row, after the recipe's system turn if it has text; all answers are trained.

        Args:
            templates: the template of each role's turn, if the recipe names no column of messages.
        """
        if self._data.messages:
            turns = self._read_messages(row, needs_answer="assistant" in templates)
        else:
            texts = {role: fill_required(template or "", row) for role, template in templates.items()}
            turns = [Turn(role, text, trained=role == "assistant") for role, text in texts.items()]
        system = fill_template(self._data.system or "", row)
        if not system.strip():
            return turns
        if turns and turns[0].role == "system":
            raise RowProblem("both the row and the recipe have a system turn", code="wrong-messages")
        return [Turn("system", system, trained=False), *turns]

    def _read_messages(self, row: Mapping[str, Any], *, needs_answer: bool) -> list[Turn]:
        """Return the turns of all columns of messages; only answers of the last column are trained."""
        turns: list[Turn] = []
        for index, column in enumerate(message_columns(self._data)):
            try:
                following = parse_messages(row, column, self._data.roles)
            except EmptyCell:
                if index == 0 or needs_answer:
                    raise
                break
            turns = [*(replace(turn, trained=False) for turn in turns), *following]
        return turns

    def render(self, turns: Sequence[Turn], example_id: str = "") -> TokenizedExample:
        """Tokenize a conversation; raise RowProblem if the trained ids do not decode to the answers."""
        spans = self._render_spans(turns, generation=False)
        prompt = self._render_spans(turns[:-1], generation=True)[:-1]
        differs = "the chat template renders the {} differently in training and in generation"
        if prompt != spans[: len(prompt)]:
            raise RowProblem(differs.format("prompt"), code="template-differs")
        ids, starts, _ = self._tokenizer.encode_with_fixed_prefix(spans, len(prompt))
        trained = [False] * len(ids)
        for prefix_at in (4 * index + 2 for index, turn in enumerate(turns) if turn.trained):
            if not spans[prefix_at].starts_generation:
                raise RowProblem(differs.format("beginning of an answer"), code="template-differs")
            if not spans[prefix_at + 2].text:
                hint = "; set data.train_on: last" if prefix_at < 4 * len(turns) - 2 else ""
                reason = f"the chat template has no stop token after every turn of the assistant{hint}"
                raise RowProblem(reason, code="no-stop-token")
            first, last = starts[prefix_at], starts[prefix_at + 3]
            expected = "".join(span.text for span in spans[prefix_at : prefix_at + 3])
            is_decoded = self._tokenizer.decodes_to(ids[first:last], expected, before=ids[first - 1 : first])
            if not is_decoded or ids[last - 1] != self.stop_ids[0]:
                detail = repr(expected[:80])
                raise RowProblem("the answer's tokens do not decode to the answer", detail, code="decode-mismatch")
            trained[first:last] = [True] * (last - first)
        return TokenizedExample(example_id, tuple(ids), tuple(trained))

    def find_control_token(self, turns: Sequence[Turn]) -> str | None:
        """Return the first control token in the text of a turn."""
        find = self._tokenizer.find_control_token
        return next(filter(None, (find(turn.text, allow_markup=turn.role == "assistant") for turn in turns)), None)

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids up to the assistant's last answer."""
        before_answer = turns[:-1] if turns[-1].role == "assistant" else turns
        return self._tokenizer.encode(self._render_spans(before_answer, generation=True)).ids

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
        text = self._render_text([turn.role for turn in turns], [turn.text for turn in turns], generation=True)
        return self._tokenizer.encode_trusted(text)

    def reference(self, turns: Sequence[Turn]) -> str:
        """Return the assistant's last answer."""
        return turns[-1].text

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without stop tokens and without the text that the template puts before it."""
        text = self._tokenizer.decode([i for i in ids if i not in self.stop_ids])
        return text.removeprefix(self._template_texts(("user", "assistant"), False)[1].answer_prefix.text).strip()

    def user_turn(self, text: str) -> tuple[Turn, ...]:
        """Return a user's turn, after the recipe's system turn if that has no columns."""
        template = self._data.system
        is_fixed = bool(template) and not columns_in(str(template))
        system = [Turn("system", fill_template(str(template), {}), trained=False)] if is_fixed else []
        return (*system, Turn("user", fill_single_column(self._data.prompt, text), trained=False))

    # ---- the template's text ----

    def _render_spans(self, turns: Sequence[Turn], *, generation: bool) -> list[Span]:
        """Render a conversation and divide it into spans.

        The template must render turns unchanged, except for answers that are not trained on and, if `generation`, all
        earlier answers, because many templates remove the thoughts from them.
        """
        must_match = [turn.role != "assistant" or (turn.trained and not generation) for turn in turns]
        roles = tuple(turn.role for turn in turns)
        text = self._render_text(roles, [turn.text for turn in turns], generation)
        for _ in range(2):
            spans = self._match(text, turns, self._template_texts(roles, generation), must_match)
            if spans is not None:
                return spans
            # A template may contain today's date, and a server runs for more than a day.
            self._literals.cache_clear()
            self._template_texts.cache_clear()
        raise RowProblem("the chat template rewrites the conversation", repr(text[-120:]), code="template-rewrites")

    def _render_text(self, roles: Sequence[str], contents: Sequence[str], generation: bool) -> str:
        if not set(roles) <= set(ROLES):  # templates put roles between control tokens
            raise RowProblem("a message has an unknown role", f"use one of {', '.join(ROLES)}", code="unknown-role")
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            arguments = self._data.template_arguments
            return self._tokenizer.apply_chat_template(messages, generation=generation, arguments=arguments)
        except Exception as error:  # a template is a program that can raise anything
            reason = "the chat template refuses the conversation"
            raise RowProblem(reason, str(error), code="template-refuses") from error

    def _match(
        self, text: str, turns: Sequence[Turn], literals: Sequence[_TemplateText], must_match: Sequence[bool]
    ) -> list[Span] | None:
        """Divide a rendered conversation into spans by the template's text; return None if they do not match.

        Args:
            must_match: for each turn, whether the template must render it unchanged.
        """
        spans: list[Span] = []
        position = 0
        for before, turn, following, is_fixed in zip(literals, turns, literals[1:], must_match, strict=False):
            stop, between, answer_prefix = before
            position += len(stop.text) + len(between.text)
            after = following.stop.text + following.between.text
            shortened = () if is_fixed else _shortened_renderings(text, position, answer_prefix.text, after)
            for prefix_text, content in chain(_renderings(answer_prefix.text, turn.text), shortened):
                is_match = text.startswith(f"{prefix_text}{content}{after}", position)
                if is_match and (is_fixed or content.strip() in turn.text):
                    break
            else:
                return None
            allowed = self._answer_control_ids if turn.role == "assistant" else frozenset()
            spans += (stop, between, answer_prefix._replace(text=prefix_text), Span(content, allowed))
            position += len(prefix_text) + len(content)
        spans += literals[-1]
        return spans if "".join(span.text for span in spans) == text else None

    def _find_template_texts(self, roles: tuple[str, ...], generation: bool) -> tuple[_TemplateText, ...]:
        """Return the template's text around turns with these roles: before each turn, and at the end."""
        control_ids = self._tokenizer.control_ids
        texts = []
        for index, literal in enumerate(self._literals(roles, generation)):
            has_stop = roles[index - 1 : index] == ("assistant",) and literal.startswith(self._stop)
            stop = self._stop if has_stop else ""
            is_answer = roles[index : index + 1] == ("assistant",)
            answer_prefix = self._find_answer_prefix(roles[:index], literal) if is_answer else None
            between = literal[len(stop) : len(literal) - len(answer_prefix or "")]
            prefix_span = Span(answer_prefix or "", control_ids, starts_generation=answer_prefix is not None)
            texts.append(_TemplateText(Span(stop, control_ids), Span(between, control_ids), prefix_span))
        return tuple(texts)

    def _find_answer_prefix(self, roles_before: tuple[str, ...], literal: str) -> str | None:
        """Return the template's text after the generation prompt; None if `literal` does not begin with that prompt."""
        try:
            prompt = self._literals(roles_before, True)[-1]
        except RowProblem:
            return None
        answer_prefix = literal[len(prompt) :]
        # A header in it would not be part of the answer.
        has_header = not self._tokenizer.special_ids.isdisjoint(self._tokenizer.encode_trusted(answer_prefix))
        return answer_prefix if literal.startswith(prompt) and not has_header else None

    def _find_literals(self, roles: tuple[str, ...], generation: bool) -> tuple[str, ...]:
        """Return the template's text before, between and after turns with these roles, by rendering placeholders."""
        text = self._render_text(roles, [_PLACEHOLDER.format(index) for index in range(len(roles))], generation)
        pieces = _PLACEHOLDERS.split(text)
        rendered = [int(number) for number in pieces[1::2]]
        if rendered != list(range(len(roles))):
            lost = [role for index, role in enumerate(roles) if rendered.count(index) != 1]
            problem = f"drops or repeats the turn of the {lost[0]}" if lost else "changes the order of the turns"
            raise RowProblem(f"the chat template {problem}", code="template-rewrites")
        return tuple(pieces[0::2])

    def _find_stop(self) -> tuple[str, int]:
        """Return the text from the end of an answer to its stop token, and the id of that token."""
        where = "tokenizer chat_template"
        try:
            literal = self._literals(("user", "assistant"), False)[-1]
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


def _shortened_renderings(text: str, position: int, answer_prefix: str, after: str) -> Iterator[tuple[str, str]]:
    """Yield (answer_prefix, content) of a turn that the template may have shortened: all text up to `after`."""
    for prefix_text in dict.fromkeys((answer_prefix, "")):
        begin = position + len(prefix_text)
        if after and text.startswith(prefix_text, position) and (end := text.find(after, begin)) >= 0:
            yield prefix_text, text[begin:end]


def _renderings(answer_prefix: str, content: str) -> Iterator[tuple[str, str]]:
    """Yield (answer_prefix, content) for the ways to render a turn: unchanged, or with blanks or line breaks stripped.

    A template may also omit its `answer_prefix` before an answer that begins with a thought.
    """
    yield answer_prefix, content
    stripped = [strip(blanks) for blanks in (None, "\n") for strip in (content.strip, content.lstrip, content.rstrip)]
    for prefix_text in dict.fromkeys((answer_prefix, "")):
        for rendered in dict.fromkeys((content, *stripped)):
            yield prefix_text, rendered
