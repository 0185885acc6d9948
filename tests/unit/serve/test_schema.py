"""Each field is used or refused by name; values that ask for nothing are accepted."""

from typing import Any

import pytest

from tunesmith.serve.errors import ApiError
from tunesmith.serve.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

USER = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "m", "messages": USER}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}


def refusal(kind: type[Any], body: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return (param, code) of the error for a request."""
    with pytest.raises(ApiError) as caught:
        kind.parse(body)
    assert caught.value.status == 400
    return caught.value.param, caught.value.reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]), ("tool_choice", "required"), ("response_format", {"type": "json_object"}),
        ("functions", [{}]), ("service_tier", "flex"), ("store", True), ("modalities", ["audio"]), ("audio", {}),
        ("reasoning_effort", "high"), ("best_of", 2), ("suffix", "x"), ("metadata", {"a": "b"}), ("prediction", {}),
    ],
)  # fmt: skip
def test_an_unsupported_field_is_refused_by_name(field: str, value: Any) -> None:
    for kind, body in ((ChatRequest, CHAT), (CompletionRequest, TEXT)):
        assert refusal(kind, {**body, field: value}) == (field, "unsupported_parameter")


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", []), ("tools", None), ("tool_choice", "none"), ("response_format", {"type": "text"}), ("store", False),
     ("functions", None), ("logit_bias", {}), ("parallel_tool_calls", True), ("service_tier", "auto"), ("stop", None),
     ("best_of", 1), ("user", "u-1"), ("seed", None), ("n", 1), ("temperature", 1), ("top_p", 1), ("top_k", -1)],
)  # fmt: skip
def test_a_value_that_asks_for_nothing_is_accepted(field: str, value: Any) -> None:
    assert ChatRequest.parse({**CHAT, field: value}).model == "m"
    assert CompletionRequest.parse({**TEXT, field: value}).model == "m"


@pytest.mark.parametrize("field", ["frob", "guided_regex", "max_new_tokens", "Temperature", "extra_body", "ignore_eos"])
def test_an_unknown_field_is_refused_by_name_even_if_null(field: str) -> None:
    for kind, body in ((ChatRequest, CHAT), (CompletionRequest, TEXT), (TokenizeRequest, TEXT)):
        assert refusal(kind, {**body, field: None}) == (field, "unknown_parameter")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": True}, "n"), ({"n": 0}, "n"), ({"n": 10**6}, "n"), ({"n": "2"}, "n"), ({"n": 2}, "n"),
        ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"), ({"temperature": "1"}, "temperature"),
        ({"temperature": -0.1}, "temperature"), ({"temperature": 1e999}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"top_p": 0.5}, "top_p"), ({"top_k": 5}, "top_k"), ({"min_p": 0.1}, "min_p"), ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"), ({"stop": [""]}, "stop[0]"), ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 2**20}, "stop[0]"), ({"stop": [1]}, "stop[0]"), ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"), ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"logprobs": 1}, "logprobs"),
        ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"), ({"presence_penalty": 3}, "presence_penalty"),
        ({"messages": []}, "messages"), ({"messages": {}}, "messages"), ({"messages": USER, "row": {}}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"), ({"messages": [5]}, "messages[0]"),
        ({"messages": [*USER, {"role": "user", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "x", "weight": 0}]}, "messages[0].weight"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content"), ({"model": None}, "model"),
    ],
    ids=lambda value: repr(value)[:50],
)  # fmt: skip
def test_a_wrong_value_is_named(change: dict[str, Any], param: str) -> None:
    assert refusal(ChatRequest, {**CHAT, **change})[0] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": []}, "prompt"), ({"prompt": [[]]}, None), ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"), ({"prompt": {}}, "prompt"), ({"max_tokens": 0}, "max_tokens"),
        ({"echo": True, "stream": True}, "echo"), ({"logprobs": 21}, "logprobs"), ({"logprobs": True}, "logprobs"),
        ({"prompt": ["x"] * 200, "n": 2, "temperature": 1}, "prompt"), ({"max_completion_tokens": 3}, None),
    ],
    ids=lambda value: repr(value)[:50],
)  # fmt: skip
def test_a_wrong_value_of_a_completion_is_named(change: dict[str, Any], param: str | None) -> None:
    if change == {"prompt": [[]]}:  # refused by the worker, which knows what an empty prompt means
        assert CompletionRequest.parse({**TEXT, **change}).prompt == [[]]
    else:
        assert refusal(CompletionRequest, {**TEXT, **change})[0] == (param or "max_completion_tokens")


@pytest.mark.parametrize("field", ["model", "prompt"])
def test_a_missing_field_is_named(field: str) -> None:
    body = {name: value for name, value in TEXT.items() if name != field}
    assert refusal(CompletionRequest, body) == (field, "missing_parameter")


def test_an_answer_of_the_sdk_can_be_sent_back() -> None:
    answer = {
        "role": "assistant",
        "content": "yes",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
        "audio": None,
    }
    assert len(ChatRequest.parse({"model": "m", "messages": [*USER, answer, *USER]}).messages) == 3


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert (
        ChatRequest.parse({"model": "m", "messages": [{"role": "user", "content": parts}]}).messages[0].content == "ab"
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]]), (["a", [1]], ["a", [1]])],
)  # fmt: skip
def test_prompts_have_four_forms(prompt: Any, expected: Any) -> None:
    assert CompletionRequest.parse({"model": "m", "prompt": prompt}).prompt == expected


def test_requests_of_tokens_are_strict() -> None:
    assert refusal(TokenizeRequest, {"model": "m"})[0] == "prompt"
    assert refusal(TokenizeRequest, {**TEXT, "messages": USER})[0] == "prompt"
    assert refusal(DetokenizeRequest, {"model": "m", "tokens": ["1"]})[0] == "tokens[0]"
