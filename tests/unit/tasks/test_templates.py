"""Chat templates that cannot be trained with are refused, at the beginning or row by row."""

from types import SimpleNamespace

import pytest
from tests.support.errors import raises, row_problem
from tests.support.tiny import CHATML, make_tokenizer
from tests.unit.tasks.families import chat_data, conversation

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

ODD = 'One & "two" <b>three</b>, and\nthe rest of it.'
CONTENT, ANSWER, END = "m['content']", "m['role'] == 'assistant'", "'<|im_end|>'"


def task_with(template: str | None) -> ChatTask:
    return ChatTask(chat_data(), TokenizerAdapter(make_tokenizer(template)))


def with_content(expression: str, *, by: str = "assistant") -> str:
    """Return ChatML with another expression for the content of one role's turns."""
    assert CONTENT in CHATML
    return CHATML.replace(CONTENT, f"({expression} if m['role'] == '{by}' else {CONTENT})")


def test_missing_template_is_refused() -> None:
    with raises(RecipeError, "no-chat-template", where="data.task"):
        task_with(None)


@pytest.mark.parametrize(
    ("template", "code", "named"),
    [
        (
            "{% for m in messages if m.role != 'assistant' %}" + CHATML.split("%}", 1)[1],
            "template-rewrites",
            "assistant",
        ),
        (with_content("''"), "template-rewrites", "assistant"),
        (with_content(f"{CONTENT} + {CONTENT}"), "template-rewrites", "assistant"),
        (with_content(f"{CONTENT}|upper"), "template-rewrites", "assistant"),
        (with_content(f"{CONTENT}|upper", by="user"), "template-rewrites", "user"),
        ("{% for m in messages|reverse %}" + CHATML.split("%}", 1)[1], "template-rewrites", "order"),
        (CHATML.replace("<|im_end|>", ""), "no-stop-token", ""),
        ("{{ raise_exception('not today') }}", "template-refuses", "not today"),
        ("{{ messages[7].content.x }}", "template-refuses", ""),
        ("{{ 1 / 0 }}", "template-refuses", "division by zero"),
        ("{% for m in %}", "template-refuses", ""),
    ],
)
def test_template_that_no_row_can_use_is_refused_at_once(template: str, code: str, named: str) -> None:
    with raises(DataError, code, named, where="tokenizer chat_template") as caught:
        task_with(template)
    assert caught.value.hint


@pytest.mark.parametrize(
    "expression",
    [
        f"{CONTENT}|urlencode",
        f"{CONTENT}|tojson",
        f"{CONTENT}|replace('t', '')",
        f"{CONTENT}|truncate(22, True, '')",
        f"{CONTENT}|replace(' ', '')",
        f"{CONTENT}[:24]",
    ],
)
@pytest.mark.parametrize("by", ["assistant", "user"])
def test_row_that_the_template_rewrites_is_a_row_problem(expression: str, by: str) -> None:
    turns = conversation("one", ODD) if by == "assistant" else conversation(ODD, "one")
    with row_problem("template-rewrites"):
        task_with(with_content(expression, by=by)).render(turns)


@pytest.mark.parametrize(
    ("template", "code"),
    [
        # A thought that the template begins in generation and not in training.
        (
            CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'"),
            "template-differs",
        ),
        # No header in the generation prompt, so that the model would learn to write the header.
        (CHATML.replace("{% if add_generation_prompt %}", "{% if false %}"), "template-differs"),
        # An instruction in generation only.
        ("{% if add_generation_prompt %}Answer now. {% endif %}" + CHATML, "template-differs"),
        # Blanks that are kept in training only.
        (
            CHATML.replace(CONTENT, f"({CONTENT}|trim if add_generation_prompt else {CONTENT})"),
            "template-differs",
        ),
        # A stop token after the last turn only, and after all but the last turn.
        (CHATML.replace(END, f"('' if {ANSWER} and not loop.last else {END})"), "no-stop-token"),
        (
            CHATML.replace(END, f"('' if {ANSWER} and loop.last and loop.length > 2 else {END})"),
            "no-stop-token",
        ),
    ],
)
def test_template_that_differs_in_training_and_generation_is_a_row_problem(template: str, code: str) -> None:
    turns = conversation("Say one. ", "one", "two ", "three")
    with row_problem(code) as caught:
        task_with(template).render(turns)
    assert "three" not in caught.value.reason, "the reason is the same for all rows, which are counted by it"


def test_template_that_drops_a_role() -> None:
    template = "{% for m in messages if m.role != 'system' %}" + CHATML.split("%}", 1)[1]
    with row_problem("template-rewrites", "system"):
        task_with(template).render(conversation("one", "two", system="three"))
    assert task_with(template).render(conversation("one", "two"))


def test_template_with_the_date_works_on_the_next_day(monkeypatch: pytest.MonkeyPatch) -> None:
    today = ["Monday"]
    clock = SimpleNamespace(now=lambda: SimpleNamespace(strftime=lambda _: today[0]))
    monkeypatch.setattr("tunesmith.tasks.chat_template.datetime", clock)
    dated = "{{ '<|im_start|>system\n' + strftime_now('%A') + '<|im_end|>\n' }}" + CHATML
    task = task_with(dated)
    for today[0] in ("Monday", "Tuesday", "Monday"):
        turns = conversation("one", "two")
        tokens, prompt = task.render(turns), task.encode_prompt(turns)
        assert TokenizerAdapter(make_tokenizer()).decode(prompt).startswith(f"<|im_start|>system\n{today[0]}<|im_end|>")
        assert list(tokens.input_ids[: len(prompt)]) == prompt
