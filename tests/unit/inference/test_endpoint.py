"""An OpenAI-compatible endpoint: busy servers are asked again, refused prompts are errors of a row."""

from typing import Any

import pytest
from tests.support.endpoint import choice, endpoint
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.inference.endpoint import Endpoint, EndpointAnswer

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.core.json_server._PAUSES", (0.0, 0.0))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("https://host/v1#org/model", Endpoint("https://host/v1", "org/model")),
        ("http://localhost:8000/v1/#m", Endpoint("http://localhost:8000/v1", "m")),
        ("run:runs/a#5", None),
        ("org/model", None),
    ],
)
def test_a_reference_has_a_url_and_a_model(reference: str, expected: Endpoint | None) -> None:
    assert Endpoint.parse(reference) == expected


@pytest.mark.parametrize("reference", ["https://host/v1", "http://host/v1#"])
def test_a_url_without_a_model_is_refused(reference: str) -> None:
    with raises(RecipeError, "unknown-model", "v1#MODEL", where=reference):
        Endpoint.parse(reference)


def test_a_request_has_the_conversation_the_options_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with endpoint(lambda body: (200, choice("hello", "length"))) as (url, requests):
        assert Endpoint(url, "m").ask(HI, max_tokens=3) == EndpointAnswer("hello", False)
    assert requests == [
        {"model": "m", "messages": HI, "max_tokens": 3, "path": "/v1/chat/completions", "key": "Bearer secret"}
    ]


def test_a_busy_server_is_asked_again() -> None:
    replies = iter([(503, {}), (429, {}), (200, choice("hello"))])
    with endpoint(lambda body: next(replies)) as (url, requests):
        assert Endpoint(url, "m").ask(HI) == EndpointAnswer("hello", True)
    assert len(requests) == 3
    assert requests[0]["key"] is None


def test_a_refused_prompt_is_an_error_of_its_row() -> None:
    with endpoint(lambda body: (400, {"error": "context length"})) as (url, requests):
        answer = Endpoint(url, "m").ask(HI)
    assert (answer.text, len(requests)) == ("", 1)
    assert answer.error is not None
    assert "context length" in answer.error


@pytest.mark.parametrize(
    ("status", "response", "kind", "code", "attempts"),
    [
        (401, {}, RecipeError, "wrong-key", 1),
        (404, {}, RecipeError, "unknown-model", 1),
        (500, {}, TunesmithError, "server-failed", 3),
        (200, {"unexpected": 1}, TunesmithError, "server-failed", 1),
        (200, [], TunesmithError, "server-failed", 1),
    ],
)
def test_a_server_that_cannot_be_asked_is_an_error(
    status: int, response: Any, kind: type[TunesmithError], code: str, attempts: int
) -> None:
    with endpoint(lambda body: (status, response)) as (url, requests):
        with raises(kind, code, url):
            Endpoint(url, "m").ask(HI)
        assert len(requests) == attempts


def test_an_unreachable_server_is_an_error() -> None:
    with endpoint(lambda body: (200, {})) as (url, _):
        pass
    with raises(RecipeError, "server-unreachable", url):
        Endpoint(url, "m").ask(HI)
