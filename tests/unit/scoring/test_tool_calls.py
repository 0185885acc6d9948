"""Metrics of tool calls: the notations that they read, and which calls are equal."""

import json

import pytest
from tests.support.errors import raises

from tunesmith.core.errors import DataError
from tunesmith.scoring.metrics import score
from tunesmith.scoring.tool_calls import parse_calls, tool_call, tool_call_f1, tool_call_name

CALL = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": null}]}}'
OTHER = '{"name": "now", "arguments": {}}'

# The same two calls in every notation.
NOTATIONS = {
    "a list": f"[{CALL}, {OTHER}]",
    "Hermes": f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{OTHER}\n</tool_call>",
    "Hermes with a thought and text": f"<think>call <tool_call>?</think>\nI ask:\n<tool_call>{CALL}</tool_call> "
    f"and <tool_call>{OTHER}</tool_call>.",
    "Hermes without the last tag": f"<tool_call>{CALL}</tool_call><tool_call>{OTHER}",
    "Hermes with a list": f"<tool_call>[{CALL}, {OTHER}]</tool_call>",
    "Mistral": f"[TOOL_CALLS] [{CALL}, {OTHER}]",
    "Mistral with ids": '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "Ab3"}, ' + CALL + "]",
    "later Mistral": '[TOOL_CALLS]add[ARGS]{"a": 1, "b": [2, {"c": null}]}[TOOL_CALLS]now[CALL_ID]7[ARGS]{}',
    "Llama 3.1": f"{CALL.replace('arguments', 'parameters')}; {OTHER.replace('arguments', 'parameters')}",
    "Llama 3.1 with a tag": f"<|python_tag|>{CALL.replace('arguments', 'parameters')};{OTHER}",
    "OpenAI": json.dumps([{"type": "function", "id": "7", "function": json.loads(call)} for call in (CALL, OTHER)]),
    "arguments as text": json.dumps([
        {"name": "add", "arguments": '{"b": [2, {"c": null}], "a": 1.0}'}, {"name": "now", "arguments": ""}
    ]),
    "no arguments": f'[{CALL}, {{"name": "now"}}]',
}  # fmt: skip


@pytest.mark.parametrize("notation", NOTATIONS)
def test_every_notation_is_read(notation: str) -> None:
    calls = parse_calls(NOTATIONS[notation])
    assert calls is not None
    assert sorted(call.name for call in calls) == ["add", "now"]
    assert sorted(calls) == sorted(parse_calls(NOTATIONS["a list"]) or [])
    for metric in (tool_call, tool_call_name, tool_call_f1):
        assert metric([NOTATIONS[notation]], [[NOTATIONS["a list"]]]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "", "It is noon.", "[1]", '"add"', '{"a": 1}', '{"name": "Ann", "age": 3}', '{"name": 3, "arguments": {}}',
        '{"name": "add", "arguments": [1]}', '{"name": "add", "arguments": "1 and 2"}', CALL[:-1], f"{CALL} is it",
        "<tool_call></tool_call>", f"<tool_call>{CALL[:-4]}", "[TOOL_CALLS]", "[TOOL_CALLS]add[ARGS]{",
        '{"name": "add", "arguments": {"a": NaN}}', '{"name": "add", "arguments": "NaN"}', "[" * 10**5,
    ],
)  # fmt: skip
def test_text_without_a_readable_call_scores_0(text: str) -> None:
    assert parse_calls(text) is None
    for metric in (tool_call, tool_call_name, tool_call_f1):
        assert metric([text], [[CALL]]) == [0.0]
        assert metric([text], [["[]"]]) == [0.0]


def _call(name: str, **arguments: object) -> dict[str, object]:
    return {"name": name, "arguments": arguments}


# (calls of the answer, calls of the reference, tool_call, tool_call_name, tool_call_f1).
PAIRS = [
    ([_call("f", a=1, b=2)], [_call("f", b=2, a=1.0)], 1, 1, 1),
    ([_call("f", a=1)], [_call("f", a="1")], 0, 1, 0),
    ([_call("f", a=1)], [_call("f", a=True)], 0, 1, 0),
    ([_call("f", a=[1, 2])], [_call("f", a=[2, 1])], 0, 1, 0),
    ([_call("f", a={})], [_call("f", a=[])], 0, 1, 0),
    ([_call("g", a=1)], [_call("f", a=1)], 0, 0, 0),
    ([_call("f", a=1, b=2)], [_call("f", a=1, b=3)], 0, 1, 1 / 2),
    ([_call("f", a=1)], [_call("f", a=1, b=2, c=3)], 0, 1, 2 * 1 / (1 + 3)),
    ([_call("g"), _call("f", a=1)], [_call("f", a=1), _call("g")], 1, 1, 1),
    ([_call("f", a=1)], [_call("f", a=1), _call("f", a=1)], 0, 0, 2 * 1 / (1 + 2)),
    ([_call("f", a=1, b=2), _call("f", a=3, b=4)], [_call("f", a=1, b=4), _call("f", a=3, b=2)], 0, 1, 1),
    ([], [], 1, 1, 1),
    ([_call("f", a=1)], [], 0, 0, 0),
    ([], [_call("f")], 0, 0, 0),
]


@pytest.mark.parametrize(("answer", "reference", "whole", "names", "f1"), PAIRS)
def test_values(answer: list[object], reference: list[object], whole: float, names: float, f1: float) -> None:
    values = score([json.dumps(answer)], [json.dumps(reference)], ["tool_call", "tool_call_name", "tool_call_f1"])
    assert values == {"tool_call": [whole], "tool_call_name": [names], "tool_call_f1": [pytest.approx(f1)]}


def test_the_best_reference_counts() -> None:
    assert tool_call([CALL], [[OTHER, CALL]]) == [1.0]


def test_a_reference_without_a_call_is_refused() -> None:
    for metric in (tool_call, tool_call_name, tool_call_f1):
        with raises(DataError, "reference-not-tool-call", where="references[1]"):
            metric([CALL, CALL], [[CALL], [CALL, "so be it"]])
