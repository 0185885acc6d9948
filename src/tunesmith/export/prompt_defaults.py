"""Write a recipe's prompt into an exported folder, so that other programs ask the model as it was trained.

A client that sends only the user's turn gets the system turn, the template arguments and the date of the recipe, since
the chat template adds them; what a client sends itself takes precedence. Generation ends at the tokens that the model
learned to stop at.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import read_json, write_json, write_text
from tunesmith.export.literals import jinja_value
from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.schema import ChatData, Data
from tunesmith.recipe.template import columns_in
from tunesmith.tasks import task_for
from tunesmith.tasks.base import fill_template
from tunesmith.tasks.chat_template import DATE_FUNCTION, ChatTemplate
from tunesmith.tasks.model_tokenizer import load_tokenizer
from tunesmith.tasks.recorded_data import recorded_data

_TEMPLATE, _TOKENIZER, _GENERATION = "chat_template.jinja", "tokenizer_config.json", "generation_config.json"
_DATE_CALL = re.compile(rf"\b{DATE_FUNCTION}\(\s*(['\"])([^'\"]*)\1\s*\)")


def write_prompt_defaults(folder: Path, model: ModelFolder) -> None:
    """Give the chat template of an exported folder the defaults of the recipe, and end generation as in training.

    Does nothing for a model that tunesmith did not tune.

    Raises:
        RecipeError: another version of tunesmith recorded the prompts of the model.
    """
    data = recorded_data(model)
    if data is None:
        return
    task = task_for(data, load_tokenizer(model))
    if (folder / _GENERATION).exists():
        generation = read_json(folder / _GENERATION)
        write_json(folder / _GENERATION, {**generation, "eos_token_id": _one_or_list(task.stop_ids)})
    if (folder / _TEMPLATE).exists():
        template = with_defaults((folder / _TEMPLATE).read_text(encoding="utf-8"), data)
        write_text(folder / _TEMPLATE, template)
        settings = read_json(folder / _TOKENIZER)
        write_json(folder / _TOKENIZER, {**settings, "chat_template": template})


def default_system(data: Data) -> str | None:
    """Return the system turn that all rows of a recipe have; None if it depends on their columns, or there is none."""
    if not isinstance(data, ChatData) or not data.system or columns_in(data.system):
        return None
    system = fill_template(data.system, {})
    return system if system.strip() else None


def with_defaults(template: str, data: Data) -> str:
    """Return a chat template with the system turn, the arguments and the date of a recipe as its defaults.

    Raises:
        TunesmithError: the template with defaults renders otherwise than with the same values from a client.
    """
    if not isinstance(data, ChatData):
        return template
    # After the newline, which the environment of templates removes, a template is at the beginning of a line as before.
    complete = "".join(f"{line}\n" for line in _assignments(data)) + _with_date(template, data.template_date)
    _require_same(template, complete, data)
    return complete


def _assignments(data: ChatData) -> Iterator[str]:
    for name, value in data.template_arguments.items():
        yield f"{{%- if {name} is not defined %}}{{%- set {name} = {jinja_value(value)} %}}{{%- endif %}}"
    if system := default_system(data):
        turn = f"[{{'role': 'system', 'content': {jinja_value(system)}}}]"
        condition = "not messages or messages[0]['role'] != 'system'"
        yield f"{{%- if {condition} %}}{{%- set messages = {turn} + messages %}}{{%- endif %}}"


def _with_date(template: str, day: date | None) -> str:
    """Return a template with its calls for the current date replaced by a fixed date."""
    if day is None:
        return template
    return _DATE_CALL.sub(lambda call: jinja_value(day.strftime(call[2])), template)


def _require_same(template: str, complete: str, data: ChatData) -> None:
    """Raise TunesmithError unless a template with defaults renders a conversation as if a client had sent them."""
    system = default_system(data)
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    turns += [{"role": "user", "content": "three"}]
    with_system = [{"role": "system", "content": system}, *turns] if system else turns
    variables = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<token>")
    sent = {**data.template_arguments, **({DATE_FUNCTION: data.template_date.strftime} if data.template_date else {})}
    plain, defaults = ChatTemplate(template, variables), ChatTemplate(complete, variables)
    for conversation in (with_system, turns, [{"role": "system", "content": "four"}, *turns]):
        wanted = _rendered(plain, with_system if conversation is turns else conversation, sent)
        found = _rendered(defaults, conversation)
        if wanted != found:
            message = "the recipe's system turn and arguments cannot become defaults of this chat template"
            hint = "report this template; export with --to merged and send the system turn yourself"
            raise TunesmithError(message, where=_TEMPLATE, hint=hint, code="template-differs")


def _rendered(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any] = {}
) -> str | None:
    """Return a rendered conversation; None if the template refuses it, as some refuse a system turn."""
    try:
        return template.render(messages, generation=True, arguments=arguments)
    except Exception:  # a template is a program, which can raise anything
        return None


def _one_or_list(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)
