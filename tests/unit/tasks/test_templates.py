"""Templates that a model could not learn from are told in words, at once or row by row."""

from types import SimpleNamespace

import pytest
from tests.support.tiny import CHATML, make_tokenizer
from tests.unit.tasks.families import chat_data, conversation

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.tasks.base import RowProblem
from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

ODD = 'One & "two" <b>three</b>, and\nthe rest of it.'
CONTENT, ANSWER, END = "m['content']", "m['role'] == 'assistant'", "'<|im_end|>'"


def task_with(template: str | None) -> ChatTask:
    return ChatTask(chat_data(), TokenizerAdapter(make_tokenizer(template)))


def said_as(expression: str, *, by: str = "assistant") -> str:
    """Return ChatML in which the content of one role's turns is written otherwise."""
    assert CONTENT in CHATML
    return CHATML.replace(CONTENT, f"({expression} if m['role'] == '{by}' else {CONTENT})")


def test_no_template_at_all() -> None:
    with pytest.raises(RecipeError, match="no chat template"):
        task_with(None)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for m in messages if m.role != 'assistant' %}" + CHATML.split("%}", 1)[1],
            "drops or repeats the turn of the assistant",
        ),
        (said_as("''"), "drops or repeats the turn of the assistant"),
        (said_as(f"{CONTENT} + {CONTENT}"), "drops or repeats the turn of the assistant"),
        (said_as(f"{CONTENT}|upper"), "drops or repeats the turn of the assistant"),
        (said_as(f"{CONTENT}|upper", by="user"), "drops or repeats the turn of the user"),
        ("{% for m in messages|reverse %}" + CHATML.split("%}", 1)[1], "writes the turns in another order"),
        (CHATML.replace("<|im_end|>", ""), "no token that the model could learn to stop at"),
        ("{{ raise_exception('not today') }}", "refuses the conversation: not today"),
        ("{{ messages[7].content.x }}", "refuses the conversation: "),
        ("{{ 1 / 0 }}", "refuses the conversation: division by zero"),
        ("{% for m in %}", "refuses the conversation: "),
    ],
)
def test_templates_that_no_row_can_use(template: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        task_with(template)
    assert caught.value.where == "tokenizer chat_template"
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
def test_rows_that_a_template_rewrites(expression: str, by: str) -> None:
    turns = conversation("one", ODD) if by == "assistant" else conversation(ODD, "one")
    with pytest.raises(RowProblem, match="rewrites the conversation"):
        task_with(said_as(expression, by=by)).render(turns)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        # A thought that is opened for the model in use, and not in training.
        (
            CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'"),
            "writes the prompt differently",
        ),
        # No header when asked for an answer: the model would have to learn the header.
        (CHATML.replace("{% if add_generation_prompt %}", "{% if false %}"), "writes the prompt differently"),
        # An instruction that only a model in use would read.
        ("{% if add_generation_prompt %}Answer now. {% endif %}" + CHATML, "writes the prompt differently"),
        # Blanks that only training keeps.
        (
            CHATML.replace(CONTENT, f"({CONTENT}|trim if add_generation_prompt else {CONTENT})"),
            "writes the prompt differently",
        ),
        # Another end for the last turn than for the others, and the other way round.
        (CHATML.replace(END, f"('' if {ANSWER} and not loop.last else {END})"), "does not end every turn"),
        (
            CHATML.replace(END, f"('' if {ANSWER} and loop.last and loop.length > 2 else {END})"),
            "does not end every turn",
        ),
    ],
)
def test_rows_whose_training_would_not_be_like_use(template: str, reason: str) -> None:
    turns = conversation("Say one. ", "one", "two ", "three")
    with pytest.raises(RowProblem, match=reason) as caught:
        task_with(template).render(turns)
    assert "three" not in caught.value.reason, "rows with the same trouble are counted together"


def test_turns_of_a_kind_that_the_template_drops() -> None:
    template = "{% for m in messages if m.role != 'system' %}" + CHATML.split("%}", 1)[1]
    with pytest.raises(RowProblem, match="drops or repeats the turn of the system"):
        task_with(template).render(conversation("one", "two", system="three"))
    assert task_with(template).render(conversation("one", "two"))


def test_a_template_may_write_the_date_and_days_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
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
