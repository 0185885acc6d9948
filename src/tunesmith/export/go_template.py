"""A chat template as a Go template, for Ollama, which does not read Jinja.

Only templates that write fixed texts around the turns of each role can be translated. The translation is compared with
the template on several conversations; if it differs, it is refused, because a guess would change the prompt unnoticed.
Syntax of Go's templates: https://pkg.go.dev/text/template.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.recipe.schema import ChatData
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.chat_template import DATE_FUNCTION
from tunesmith.tasks.template_text import TemplateReader
from tunesmith.tasks.tokenizer import TokenizerAdapter

# Conversations that end with a question, each turn by the first letter of its role.
_CONVERSATIONS = ("u", "uau", "uauau", "su", "suau", "suauau")
_ROLES = {"s": "system", "u": "user", "a": "assistant"}
_CONTENT = "qz{}x\n\n{{{{ y }}}} {}kj"
_OTHER_SERVER = "serve the model with llama.cpp (`llama-server --jinja`) or `tunesmith serve`, which read the template"
_GO_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


@dataclass(frozen=True, slots=True)
class RoleTexts:
    """The fixed texts of a chat template.

    Attributes:
        before, after: {role: text before or after its turns}; without `system` if the template has no such turn.
        opening: {role of the first turn: text at the start of the conversation}.
        answer: text before an answer that is to be generated.
        strips: whether the template strips blanks around the content of a turn.
    """

    before: Mapping[str, str]
    after: Mapping[str, str]
    opening: Mapping[str, str]
    answer: str
    strips: bool

    def render(self, turns: Sequence[tuple[str, str]]) -> str:
        """Return the prompt of a conversation, as the Go template renders it."""
        body = "".join(self.before[role] + content + self.after[role] for role, content in turns)
        return self.opening[turns[0][0]] + body + self.answer

    def to_go(self) -> str:
        """Return the Go template. Ollama merges consecutive turns of one role before it renders them."""
        start = opening = ""
        openings = [go_text(self.opening[role]) for role in ("system", "user") if role in self.opening]
        if len(set(openings)) == 1:
            start = openings[0]
        else:
            opening = (
                '{{ if eq $i 0 }}{{ if eq $m.Role "system" }}' + "{{ else }}".join(openings) + "{{ end }}{{ end }}"
            )
        turns = [
            f'if eq $m.Role "{role}"' + " }}" + go_text(before) + "{{ $m.Content }}" + go_text(self.after[role])
            for role, before in self.before.items()
        ]
        body = "{{ " + "{{ else ".join(turns) + "{{ end }}"
        return start + "{{ range $i, $m := .Messages }}" + opening + body + "{{ end }}" + go_text(self.answer)


def role_texts(data: ChatData, tokenizer: TokenizerAdapter) -> RoleTexts:
    """Return the fixed texts of a model's chat template, with the arguments and the date of a recipe.

    A first control token that llama.cpp adds itself, because the tokenizer does, is left out.

    Raises:
        RecipeError: the template is more than fixed texts around turns (`template-not-fixed`).
    """
    conversations = _Conversations(data, tokenizer)
    texts = conversations.derive()
    for letters in conversations.possible(_CONVERSATIONS):
        turns = _turns(letters)
        if texts.render(turns) != conversations.render(turns):
            raise _refused("it writes other texts around the same turns in another place")
    if not tokenizer.prefix_ids:
        return texts
    added = tokenizer.decode(tokenizer.prefix_ids)
    opening = {role: text.removeprefix(added) for role, text in texts.opening.items()}
    return replace(texts, opening=opening)


class _Conversations:
    """Renders conversations with a model's chat template, and finds the texts around their turns."""

    def __init__(self, data: ChatData, tokenizer: TokenizerAdapter) -> None:
        date = {DATE_FUNCTION: data.template_date.strftime} if data.template_date else {}
        try:
            self._reader = TemplateReader(tokenizer, {**data.template_arguments, **date})
        except DataError as error:
            raise _refused(error.message) from error
        self._bos = tokenizer.decode(tokenizer.prefix_ids)
        self._refuse_unfixed(data)
        self._has_system = self._renders_system()
        if data.system and not self._has_system:
            raise _refused("it has no system turn of its own, and the recipe has one")

    def possible(self, conversations: Sequence[str]) -> list[str]:
        """Return the conversations that the template can render."""
        return [letters for letters in conversations if self._has_system or "s" not in letters]

    def render(self, turns: Sequence[tuple[str, str]], *, generation: bool = True) -> str:
        """Return a conversation as text; raise RecipeError if the template refuses it."""
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return self._reader.render(messages, "", generation)
        except RowProblem as problem:
            raise _refused("it refuses a plain conversation") from problem

    def derive(self) -> RoleTexts:
        """Return the texts that explain short conversations; others may show that they are not fixed."""
        start, to_answer, to_question, end = self._around("uau")
        after = {
            "user": _shared(to_answer, self._around("u", generation=False)[-1]),
            "assistant": _shared(to_question, self._around("ua", generation=False)[-1]),
        }
        before = {"user": _cut(to_question, after["assistant"]), "assistant": _cut(to_answer, after["user"])}
        opening = {"user": _cut_end(start, before["user"])}
        if self._has_system:
            first, to_user, _ = self._around("su")
            opening["system"] = self._bos if first.startswith(self._bos) else ""
            before = {"system": first.removeprefix(opening["system"]), **before}
            after["system"] = _cut_end(to_user, before["user"])
        strips = self.render([("user", " x ")]) == self.render([("user", "x")])
        return RoleTexts(before=before, after=after, opening=opening, answer=_cut(end, after["user"]), strips=strips)

    def _around(self, letters: str, *, generation: bool = True) -> list[str]:
        """Return the texts before, between and after the turns of a conversation."""
        turns = _turns(letters)
        rest = self.render(turns, generation=generation)
        texts = []
        for _, content in turns:
            text, found, rest = rest.partition(content)
            if not found:
                raise _refused("it does not write every turn unchanged and in its place")
            texts.append(text)
        return [*texts, rest]

    def _renders_system(self) -> bool:
        try:
            return len(self._around("su")) == 3
        except RecipeError:
            return False

    def _refuse_unfixed(self, data: ChatData) -> None:
        """Raise RecipeError if the prompt depends on the day or on tools."""
        if data.tools is not None:
            raise _refused("the recipe has tools, which Ollama writes in its own way")
        messages = [{"role": "user", "content": "x"}]
        if data.template_date is None and self._reader.writes_date(messages, ""):
            raise _refused("it writes the current date", hint="set data.template_date in the recipe")


def go_text(text: str) -> str:
    """Return text of a Go template that renders as `text`."""
    is_plain = all(c.isprintable() or c in "\n\t" for c in text)
    if is_plain and "{{" not in text and '"""' not in text and not text.endswith("{"):
        return text
    return "{{ " + _go_string(text) + " }}"


def _go_string(text: str) -> str:
    """Return a string literal of Go, in printable characters."""
    return '"' + "".join(_go_character(character) for character in text) + '"'


def _go_character(character: str) -> str:
    if character in _GO_ESCAPES:
        return _GO_ESCAPES[character]
    if character.isprintable():
        return character
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _turns(letters: str) -> list[tuple[str, str]]:
    """Return a conversation with contents that no template has in its own text."""
    return [(_ROLES[letter], _CONTENT.format(number, number)) for number, letter in enumerate(letters)]


def _shared(first: str, second: str) -> str:
    """Return the text with which both begin, without the beginning of a control token."""
    pairs = enumerate(zip(first, second, strict=False))
    length = next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))
    return re.sub(r"<[^<>]*$", "", first[:length])


def _cut(text: str, start: str) -> str:
    if not text.startswith(start):
        raise _refused("the text between two turns does not begin with the text after the first")
    return text[len(start) :]


def _cut_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise _refused("the text before a turn depends on the turn before it")
    return text[: len(text) - len(end)]


def _refused(reason: str, hint: str = _OTHER_SERVER) -> RecipeError:
    message = f"the chat template is more than fixed texts around turns: {reason}"
    return RecipeError(message, where="Modelfile TEMPLATE", hint=hint, code="template-not-fixed")
