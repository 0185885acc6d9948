"""Thoughts of answers: kept, stripped or masked, in a key or in the content, as the chat template writes them."""

import random
import re
from typing import Any

import pytest
from tests.support.errors import row_problem
from tests.unit.tasks.families import FAMILIES
from tests.unit.tasks.published import PUBLISHED_TEMPLATES, Published, generated

CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TEMPLATES = ("qwen2_5", "qwen3", "phi_4_mini", "smollm3")


def with_thoughts(messages: list[dict[str, Any]], seed: int, *, native: bool) -> list[dict[str, Any]]:
    """Return messages whose answers have thoughts: the last one always, and others at random."""
    draw = random.Random(seed)
    changed = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and (index == len(messages) - 1 or draw.random() < 0.5):
            thought = draw.choice(["hm", "one\ntwo", "so \u00e9 <x>"])
            if native:
                message = {**message, "reasoning_content": thought}
            else:
                message = {**message, "content": f"<think>\n{thought}\n</think>\n\n{message['content']}"}
        changed.append(message)
    return changed


def learned(template: Published, task: Any, row: dict[str, Any]) -> tuple[list[int], str, str]:
    """Return the ids, the text of the prompt and of what is masked, and the trained text."""
    tokens = task.render(task.parse(row))
    ids = list(tokens.input_ids)
    trained = [i for i, is_trained in zip(ids, tokens.trained, strict=True) if is_trained]
    first = tokens.trained.index(True)
    return ids, template.tokenizer.decode(ids[:first]), template.tokenizer.decode(trained)


@pytest.mark.parametrize("count", [15, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_equal_those_of_transformers_with_thoughts(name: str, count: int) -> None:
    template = PUBLISHED_TEMPLATES[name]
    native = name == "qwen3"
    column = {"tools": "t"} if template.calls else {}
    for seed in range(count):
        messages, tools, arguments = generated(template, seed)
        if arguments:
            continue
        messages = with_thoughts(messages, seed, native=native)
        row = {"m": messages, "t": tools}
        own = template.own_ids(messages, tools)
        prompt = template.own_text(messages[:-1], tools, add_generation_prompt=True)
        whole = template.own_text(messages, tools)
        answer, stop = whole[len(prompt) :], template.specials[-1]
        answer = answer[: answer.index(stop) + len(stop)]
        keep, mask = (template.task(train_on="last", reasoning=how, **column) for how in ("keep", "mask"))
        assert learned(template, keep, row) == (own, prompt, answer), seed
        end = re.match(r".*?</think>\s*", answer, re.DOTALL)
        assert end
        said = answer[end.end() :]
        assert learned(template, mask, row) == (own, prompt + end[0], said)
        assert keep.encode_prompt(keep.parse(row)) == template.own_ids(messages[:-1], tools, add_generation_prompt=True)
        reference = said.removesuffix(stop).strip()
        assert keep.reference(keep.parse(row)) == mask.reference(mask.parse(row)) == reference
        assert mask.decode_answer(template.tokenizer.encode_trusted(answer)) == reference


@pytest.mark.parametrize("name", TEMPLATES)
def test_stripped_thoughts_leave_nothing(name: str) -> None:
    template = PUBLISHED_TEMPLATES[name]
    plain = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    task = template.task(train_on="last", reasoning="strip")
    expected = task.render(task.parse({"m": plain}))
    for native in (False, True):
        assert task.render(task.parse({"m": with_thoughts(plain, 0, native=native)})) == expected


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_in_a_key_needs_a_setting(key: str) -> None:
    template = PUBLISHED_TEMPLATES["qwen3"]
    row = {"m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: "hm"}]}
    with row_problem("wrong-messages", f"`{key}`") as caught:
        template.task().parse(row)
    assert "data.reasoning" in caught.value.hint
    task = template.task(reasoning="keep")
    assert "<think>\nhm\n</think>\n\nb<|im_end|>" in learned(template, task, row)[2]


def test_a_thought_before_a_call_is_masked_up_to_the_call() -> None:
    template = PUBLISHED_TEMPLATES["qwen3"]
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"}
    messages = [{"role": "user", "content": "a"}, answer, {"role": "tool", "content": "dry"},
                {"role": "assistant", "content": "no", "reasoning_content": "so"}]  # fmt: skip
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
    call_masked, call_kept = f"{call}<|im_end|>", f"<think>\nhm\n</think>\n\n{call}<|im_end|>"
    for how, expected in (
        ("mask", f"{call_masked}no<|im_end|>"),
        ("keep", f"{call_kept}<think>\nso\n</think>\n\nno<|im_end|>"),
    ):
        task = template.task(reasoning=how)
        ids, _, trained = learned(template, task, {"m": messages})
        assert (ids, trained) == (template.own_ids(messages, None), expected)
        assert task.reference(task.parse({"m": messages[:2]})) == call


@pytest.mark.parametrize(
    ("how", "masked", "trained"),
    [
        ("keep", "", "hm\n</think>\n\nb"),
        ("mask", "hm\n</think>\n\n", "b"),
        ("strip", "", "\n</think>\n\nb"),
    ],
)
def test_answers_continue_a_thought_that_the_prompt_opens_and_the_template_drops(
    how: str, masked: str, trained: str
) -> None:
    template = PUBLISHED_TEMPLATES["deepseek_r1_distill"]
    task, stop = template.task(reasoning=how, train_on="last"), template.specials[-1]
    first = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), "xya", strict=True)]
    prompt = template.own_text(first, None, add_generation_prompt=True)
    assert prompt.endswith("<think>\n")
    for answer in ({"content": "<think>\nhm\n</think>\n\nb"}, {"content": "b", "reasoning_content": "hm"}):
        row = {"m": [*first, {"role": "assistant", **answer}]}
        ids, before, learned_text = learned(template, task, row)
        assert (before, learned_text) == (prompt + masked, trained + stop)
        assert ids[: len(task.encode_prompt(task.parse(row)))] == task.encode_prompt(task.parse(row))
        assert task.encode_prompt(task.parse(row)) == template.own_ids(first, None, add_generation_prompt=True)
        assert task.decode_answer(template.tokenizer.encode_trusted(f"hm\n</think>\n\nb{stop}")) == "b"
        every = template.task(reasoning=how)
        with row_problem("template-differs") as caught:
            every.render(every.parse(row))
        assert "data.train_on: last" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "answer", "judged"),
    [
        ("qwen3", "<think>\nhm", ""),
        ("qwen3", "<think>\nhm\n</think>\n\nb", "b"),
        ("qwen3", "b", "b"),
        ("qwen3_5", "hm", ""),
        ("qwen3_5", "hm\n</think>\n\nb", "b"),
        ("deepseek_r1_distill", "hm", ""),
    ],
)
def test_an_answer_that_ends_within_its_thought_is_judged_as_empty(name: str, answer: str, judged: str) -> None:
    template = PUBLISHED_TEMPLATES[name]
    assert template.task(reasoning="keep").decode_answer(template.tokenizer.encode_trusted(answer)) == judged
    assert template.task().decode_answer(template.tokenizer.encode_trusted("hm")) == "hm"


def test_a_second_thought_in_the_content_needs_a_setting() -> None:
    task = PUBLISHED_TEMPLATES["deepseek_r1_distill"].task()
    row = {"m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>hm</think>b"}]}
    with row_problem("template-differs") as caught:
        task.render(task.parse(row))
    assert "data.reasoning" in caught.value.hint


@pytest.mark.parametrize("how", ["keep", "mask", "strip"])
@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ({"content": "<think>hm</think>"}, "hm"),
        ({"content": "", "reasoning_content": "hm"}, "hm"),
        ({"content": None, "thinking": "hm"}, "hm"),
        ({"content": " <think>hm"}, "<think>hm"),
    ],
)
def test_answer_that_is_only_a_thought_is_a_row_problem(answer: dict[str, Any], named: str, how: str) -> None:
    task = PUBLISHED_TEMPLATES["qwen3"].task(reasoning=how)
    with row_problem("no-answer", named):
        task.parse({"m": [{"role": "user", "content": "a"}, {"role": "assistant", **answer}]})


@pytest.mark.parametrize("thought", [["one", "two"], {"text": "one"}, [{"type": "thinking", "thinking": "one"}]])
def test_thought_that_is_a_list_or_an_object_is_a_row_problem(thought: Any) -> None:
    answer = {"role": "assistant", "content": "b", "reasoning": thought}
    with row_problem("wrong-messages", "`reasoning`"):
        PUBLISHED_TEMPLATES["qwen3"].task(reasoning="keep").parse({"m": [{"role": "user", "content": "a"}, answer]})


def test_thought_whose_beginning_was_in_the_prompt_is_found() -> None:
    task = PUBLISHED_TEMPLATES["qwen3"].task(reasoning="strip")
    [_, answer] = task.parse({"m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "hm</think>b"}]})
    assert (answer.text, answer.keys) == ("b", {})
    assert task.decode_answer(PUBLISHED_TEMPLATES["qwen3"].tokenizer.encode_trusted("hm</think>b<|im_end|>")) == "b"


def test_a_trained_thought_that_the_template_drops_is_a_row_problem() -> None:
    template = PUBLISHED_TEMPLATES["qwen3"]
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    messages[1]["reasoning_content"] = "hm"
    task = template.task(reasoning="keep")
    with row_problem("template-rewrites") as caught:
        task.render(task.parse({"m": messages}))
    assert "train_on: last" in caught.value.hint


def test_thoughts_move_to_where_a_template_that_parses_them_expects_them() -> None:
    thinking = FAMILIES["thinking"]
    task = thinking.task(messages="m", reasoning="keep")
    row = {"m": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "<think>hm</think>two"}]}
    tokens = task.render(task.parse(row))
    assert thinking.runs(tokens.input_ids, tokens.trained) == ["<think>\nhm\n</think>\n\ntwo<|im_end|>"]
