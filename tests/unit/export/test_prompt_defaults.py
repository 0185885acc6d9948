"""The recipe's prompt as the defaults of an exported chat template, rendered as transformers renders it."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tests.support.errors import raises
from tests.support.tiny import CHATML, make_tokenizer, save_model
from tests.support.tuned import CHAT, tuned_model

from tunesmith.core.errors import TunesmithError
from tunesmith.core.files import read_json
from tunesmith.export.prompt_defaults import default_system, with_defaults, write_prompt_defaults
from tunesmith.fetch.reference import resolve
from tunesmith.recipe.data_record import UNKNOWN_SOURCE
from tunesmith.recipe.schema import ChatData

HOSTILE = 'It\'s "quoted" \\n {{ braces }} {% if x %} \u00bd \U0001f600\n\tsecond line'
USER = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Go"}]


def data(**settings: Any) -> ChatData:
    return ChatData(task="chat", prompt="{q}", response="{a}", source=UNKNOWN_SOURCE, **settings)


def render(template: str, messages: list[dict[str, str]], **arguments: Any) -> str:
    tokenizer = make_tokenizer(template)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **arguments)
    return str(rendered)


@pytest.mark.parametrize("template", [CHATML, "\n" + CHATML, "  {% if true %}a{% endif %}\n" + CHATML])
@pytest.mark.parametrize("system", ["Answer in SQL.", HOSTILE])
def test_a_client_without_a_system_turn_gets_that_of_the_recipe(template: str, system: str) -> None:
    """Served without it, only 35 of 100 answers of the demo's model were those of its evaluation."""
    written = system.replace("{", "{{").replace("}", "}}")  # as in a recipe, where single braces are columns
    complete = with_defaults(template, data(system=written))
    turn = [{"role": "system", "content": system}]
    assert render(complete, USER) == render(template, turn + USER)
    own = [{"role": "system", "content": "Other."}, *USER]
    assert render(complete, own) == render(template, own)


def test_template_arguments_and_the_date_are_defaults() -> None:
    template = (
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
        "{{ '<think>' if mode.on else 'plain' }}{{ level }}" + CHATML
    )
    arguments = {"mode": {"on": True, "names": ["a", None]}, "level": "high\n"}
    complete = with_defaults(template, data(template_arguments=arguments, template_date=date(2026, 5, 1)))
    assert render(complete, USER).startswith("01 May 2026<think>high\n")
    assert render(complete, USER, level="low", mode={"on": False}).startswith("01 May 2026plainlow")


def test_a_system_turn_with_columns_has_no_default() -> None:
    settings = data(system="Tables: {tables}")
    assert default_system(settings) is None
    assert with_defaults(CHATML, settings) == CHATML


def test_a_template_that_would_render_otherwise_is_refused() -> None:
    template = "{% set form = '%Y' %}{{ strftime_now(form) }}" + CHATML  # the current year, whatever the recipe says
    with raises(TunesmithError, "template-differs"):
        with_defaults(template, data(template_date=date(1999, 5, 1)))


def test_generation_ends_at_the_stop_token_of_training(tmp_path: Path) -> None:
    """Programs that stop only at the model's own end of text would generate up to their limit (unsloth#5386)."""
    folder = save_model(tmp_path / "base", "llama")
    tuned = resolve(tuned_model(folder, tmp_path / "tuned", CHAT))
    settings = read_json(tuned.path / "generation_config.json")
    (tuned.path / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 0}))
    write_prompt_defaults(tuned.path, tuned)
    assert read_json(tuned.path / "generation_config.json")["eos_token_id"] == 2
    template = (tuned.path / "chat_template.jinja").read_text()
    assert "Be brief." in template
    assert read_json(tuned.path / "tokenizer_config.json")["chat_template"] == template
