"""Every route but /healthz asks for the key, and only allowed hosts are answered."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.support.errors import raises
from tests.support.served import HELLO, KEY, Server

from tunesmith.core.errors import RecipeError
from tunesmith.serve.app import make_app
from tunesmith.serve.guard import KEY_VARIABLE, ApiKey, allowed_hosts, read_key

ODD_PATHS = ["/", "//v1/models", "/v1", "/v1/models/", "/docs", "/openapi.json", "/healthz/", "/HEALTHZ"]
METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "TRACE"]
WRONG = [
    {},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": KEY},
    {"authorization": f"Basic {KEY}"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"authorization": f"Bearer {KEY}x"},
    {"authorization": "Bearer k\u00e9y".encode()},
    {"x-api-key": KEY},
]


def guarded(served: Server, **options: object) -> TestClient:
    settings = {"key": ApiKey(KEY), "hosts": None, **options}
    return TestClient(make_app(served.service, logs=False, **settings), raise_server_exceptions=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("headers", WRONG, ids=lambda headers: repr(headers)[:40])
def test_every_route_refuses_a_request_without_the_key(served: Server, headers: dict[str, str]) -> None:
    client = guarded(served)
    paths = [route.path.replace("{name:path}", "tiny") for route in served.service.routes()]
    assert len(paths) == 9
    for path in {*paths, *ODD_PATHS} - {"/healthz"}:
        for method in METHODS:
            response = client.request(method, path, params={"api_key": KEY}, headers=headers)
            assert response.status_code == 401, (method, path)
            if method != "HEAD":
                assert response.json()["error"]["code"] == "invalid_api_key"


def test_two_keys_in_one_request_are_refused(served: Server) -> None:
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer other")]
    assert guarded(served).get("/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_key_opens_every_route(served: Server, scheme: str) -> None:
    client = guarded(served)
    client.headers["authorization"] = f"{scheme} {KEY}"
    assert client.get("/v1/models").status_code == 200
    assert client.post("/v1/chat/completions", json={"model": "tiny", **HELLO}).status_code == 200


def test_health_needs_no_key(served: Server) -> None:
    assert guarded(served).get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("key", ["", "short", " " * 20])
def test_a_key_that_is_no_secret_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(key)
    with raises(RecipeError, "no-api-key"):
        ApiKey(file=tmp_path / "key")
    with raises(RecipeError, "no-api-key"):
        ApiKey(key.strip())


def test_an_address_of_other_machines_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key("127.0.0.1") is None
    with raises(RecipeError, "no-api-key"):
        read_key("0.0.0.0")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert read_key("0.0.0.0") is not None


def test_a_changed_key_file_replaces_the_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    key = ApiKey(file=file)
    assert key.accepts(f"Bearer {KEY}".encode())
    file.write_text("another-secret-key\n")
    assert not key.accepts(f"Bearer {KEY}".encode())
    assert key.accepts(b"Bearer another-secret-key")
    file.write_text("")  # as an editor leaves it for a moment
    assert key.accepts(b"Bearer another-secret-key")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:80", 200), ("name.example", 200),
        ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil.example:80", 403), ("", 403),
    ],
)  # fmt: skip
def test_only_allowed_hosts_are_answered(served: Server, host: str, status: int) -> None:
    client = guarded(served, key=None, hosts=allowed_hosts("127.0.0.1", ["Name.example"]))
    assert client.get("/healthz", headers={"host": host}).status_code == status


def test_no_response_allows_other_sites_to_read_it(served: Server) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for method, path in (("OPTIONS", "/v1/chat/completions"), ("GET", "/v1/models")):
        response = served.client.request(method, path, headers=headers)
        assert not [name for name in response.headers if name.startswith("access-control")]
