"""Bodies are JSON objects of a limited size; anything else is refused in OpenAI's shape."""

import pytest
from tests.support.served import Server

from tunesmith.serve.body import parse_json
from tunesmith.serve.errors import ApiError

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"), (b"{", "invalid_json"), (b"[]", "invalid_json"), (b'"x"', "invalid_json"),
        (b"\xff\xfe", "invalid_json"), (b'{"a": NaN}', "invalid_json"), (b'{"a": Infinity}', "invalid_json"),
        (b'{"model": "a", "model": "b"}', "invalid_json"), (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"a":' * 50_000, "invalid_json"), (b"[" * 100_000, "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_unicode"), (b'{"\\ud800": 1}', "invalid_unicode"),
        (b'{"a": [{"b": "\\uDC00"}]}', "invalid_unicode"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(served: Server, body: bytes, code: str) -> None:
    response = served.client.post("/v1/chat/completions", content=body, headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


def test_a_repeated_key_is_named() -> None:
    with pytest.raises(ApiError) as caught:
        parse_json(b'{"seed": 1, "seed": 2}')
    assert caught.value.param == "seed"


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_another_content_type_is_refused(served: Server, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    response = served.client.post("/tokenize", content=b'{"model": "tiny", "prompt": "a"}', headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_content_type")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_and_the_connection_closed(served: Server, chunked: bool) -> None:
    body = b" " * (served.service.limits.body_bytes + 1)
    content = iter([body[:1000], body[1000:]]) if chunked else body
    response = served.client.post("/tokenize", content=content, headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert response.headers["connection"] == "close"
