"""Chat templates as Go templates: the published ones that can be translated render alike, the others are refused."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.support import go_template, tiny

from tunesmith.core.errors import RecipeError
from tunesmith.export.go_template import RoleTexts, go_text, role_texts
from tunesmith.recipe.data_record import load_data
from tunesmith.recipe.schema import ChatData
from tunesmith.tasks.tokenizer import TokenizerAdapter

TEMPLATES = Path(__file__).parents[2] / "support" / "chat_templates"
TRANSLATED = (
    "bielik3", "deepseek_r1_distill", "gemma", "granite4", "llama3_1", "phi3", "phi3_5", "phi4", "qwen2_5", "qwen3",
    "qwen3_5", "smollm3",
)  # fmt: skip
REFUSED = ("gptoss", "mistral_nemo", "mistral_small_3_2")
CONVERSATIONS = (
    [("user", "Hi {{ x }}")],
    [("user", "Hi"), ("assistant", 'a "b"\n'.strip()), ("user", "And <b>\n\nthen?")],
    [("system", "Be brief."), ("user", "Hi")],
    [("system", "Be brief."), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")],
)


def chat_data(**settings: Any) -> ChatData:
    data = load_data({"task": "chat", "prompt": "{q}", "response": "{a}", **settings}, Path("card"))
    assert isinstance(data, ChatData)
    return data


def adapter(template: str) -> TokenizerAdapter:
    """Return a tokenizer with a chat template and the control tokens that it writes."""
    found = re.findall(
        r"<\|[^|<>\n' ]+\|>|<(?:start|end)_of_turn>|<bos>|</?s>|\[/?INST\]|<\uff5c[^<>]+\uff5c>", template
    )
    specials = dict.fromkeys([*found, "<|endoftext|>", "<|im_end|>", "</s>", "<|eot_id|>", "<|end|>"])
    return TokenizerAdapter(tiny.make_tokenizer(template, specials=list(specials)))


def published(name: str) -> TokenizerAdapter:
    return adapter((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))


def conversations(texts: RoleTexts) -> list[list[tuple[str, str]]]:
    return [turns for turns in CONVERSATIONS if all(role in texts.before for role, _ in turns)]


def as_template(tokenizer: TokenizerAdapter, turns: list[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(messages, generation=True)


@pytest.mark.parametrize("name", TRANSLATED)
def test_translated_template_gives_the_same_prompts(name: str) -> None:
    tokenizer = published(name)
    texts = role_texts(chat_data(), tokenizer)
    assert len(conversations(texts)) == (2 if name == "gemma" else 4)
    for turns in conversations(texts):
        assert texts.render(turns) == as_template(tokenizer, turns)


@pytest.mark.skipif(go_template.GO is None, reason="Go is not installed")
def test_go_renders_what_the_translation_says(tmp_path: Path) -> None:
    jobs, expected = [], []
    for name in TRANSLATED:
        texts = role_texts(chat_data(), published(name))
        for turns in conversations(texts):
            messages = [{"Role": role, "Content": content} for role, content in turns]
            jobs.append({"Template": texts.to_go(), "Messages": messages})
            expected.append(texts.render(turns))
    for literal in ("{{", "a{", '"""', "\u00a0\u200b\x07", "\U000e0001", '\\ "x" {{ end }}'):
        jobs.append({"Template": f"{go_text(literal)}{{{{ .Prompt }}}}", "Prompt": "x"})
        expected.append(f"{literal}x")
    assert go_template.render(tmp_path, jobs) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_other_templates_are_refused(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        role_texts(chat_data(), published(name))
    assert caught.value.code == "template-not-fixed"


@pytest.mark.parametrize(
    "template",
    [
        # The last question has another text around it, which only longer conversations show.
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and loop.index > 3 %}!{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        # Earlier answers are shortened.
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
        "{{ m.content[:9] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ],
)
def test_template_that_only_looks_fixed_is_refused(template: str) -> None:
    with pytest.raises(RecipeError) as caught:
        role_texts(chat_data(), adapter(template))
    assert caught.value.code == "template-not-fixed"


def test_recipe_with_a_system_turn_needs_a_template_with_one() -> None:
    assert "system" not in role_texts(chat_data(), published("gemma")).before
    with pytest.raises(RecipeError):
        role_texts(chat_data(system="Be brief."), published("gemma"))


def test_date_of_the_recipe_is_written() -> None:
    template = "{{ strftime_now('%d %b %Y') }}\n" + tiny.CHATML
    with pytest.raises(RecipeError) as caught:
        role_texts(chat_data(), adapter(template))
    assert "template_date" in (caught.value.hint or "")
    texts = role_texts(chat_data(template_date="2026-05-01"), adapter(template))
    assert texts.opening["user"].startswith("01 May 2026\n")


def test_go_template_of_chatml() -> None:
    """This text was rendered by Go; the test with Go itself is skipped where it is not installed."""
    texts = role_texts(chat_data(), adapter(tiny.CHATML))
    assert texts.to_go() == (
        '{{ range $i, $m := .Messages }}{{ if eq $m.Role "system" }}<|im_start|>system\n{{ $m.Content }}<|im_end|>\n'
        '{{ else if eq $m.Role "user" }}<|im_start|>user\n{{ $m.Content }}<|im_end|>\n'
        '{{ else if eq $m.Role "assistant" }}<|im_start|>assistant\n{{ $m.Content }}<|im_end|>\n{{ end }}{{ end }}'
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain <|x|>\n", "plain <|x|>\n"),
        ("a {{ b", '{{ "a {{ b" }}'),
        ("a{", '{{ "a{" }}'),
        ('say """\n', '{{ "say \\"\\"\\"\\n" }}'),
        ("\u00a0\U000e0001", '{{ "\\u00a0\\U000e0001" }}'),
    ],
)
def test_text_that_go_or_the_modelfile_would_change_is_a_literal(text: str, expected: str) -> None:
    assert go_text(text) == expected
