"""An HTTP server that speaks JSON: retries, keys, redirects, and the code of each failure."""

from typing import Any

import pytest
from tests.support.endpoint import endpoint
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.json_server import JsonServer, RequestRefused, is_loopback


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.core.json_server._PAUSES", (0.0, 0.0))


def test_requests_carry_the_body_and_the_key() -> None:
    with endpoint(lambda request: (200, {"path": request["path"]})) as (url, requests):
        server = JsonServer(f"{url}/", key="secret")
        assert server.post("/a", {"x": 1}) == {"path": "/v1/a"}
        assert server.get("/b") == {"path": "/v1/b"}
    assert requests == [
        {"x": 1, "path": "/v1/a", "key": "Bearer secret"}, {"path": "/v1/b", "key": "Bearer secret"}
    ]  # fmt: skip


def test_a_busy_server_is_asked_again_unless_the_caller_is_in_a_hurry() -> None:
    replies = iter([(503, {}), (429, {}), (200, {"done": True}), (503, {})])
    with endpoint(lambda request: next(replies)) as (url, requests):
        server = JsonServer(url)
        assert server.get("/") == {"done": True}
        with raises(TunesmithError, "server-failed"):
            server.get("/", patient=False)
    assert len(requests) == 4


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("example.com", False)],
)  # fmt: skip
def test_loopback_addresses_are_recognized(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    with endpoint(lambda request: (200, {})) as (url, _):
        assert JsonServer(url).get("/") == {}
        assert JsonServer(url.replace("127.0.0.1", "0.0.0.0")).get("/") == {}  # as `--host 0.0.0.0` starts engines


def test_a_redirect_is_refused_so_that_the_key_stays() -> None:
    with endpoint(lambda request: (307, {}) if request["path"] == "/v1/" else (200, {})) as (url, requests):
        with raises(RequestRefused, "request-refused"):
            JsonServer(url, key="secret").get("/")
        assert len(requests) == 1


@pytest.mark.parametrize(
    ("status", "response", "kind", "code"),
    [
        (401, {}, RecipeError, "wrong-key"),
        (403, {}, RecipeError, "wrong-key"),
        (404, {}, RequestRefused, "request-refused"),
        (500, {}, TunesmithError, "server-failed"),
        (200, "<html>", TunesmithError, "server-failed"),
    ],
)
def test_each_failure_has_a_code(status: int, response: Any, kind: type[TunesmithError], code: str) -> None:
    with endpoint(lambda request: (status, response)) as (url, _), raises(kind, code, where=f"{url}/x"):
        JsonServer(url).get("/x")


def test_a_server_that_is_gone_is_reported_by_its_owner_instead_of_being_asked_again() -> None:
    with endpoint(lambda request: (200, {})) as (url, _):
        pass

    def report() -> None:
        raise TunesmithError("has exited", code="engine-failed")

    with raises(TunesmithError, "engine-failed"):
        JsonServer(url, before_retry=report).get("/")
    with raises(RecipeError, "server-unreachable", where=f"{url}/"):
        JsonServer(url).get("/")
