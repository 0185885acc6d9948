"""Limits, health, readiness and metrics; and what the log has."""

import asyncio
import threading
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient
from tests.contract.sources import ROOT
from tests.support.served import HELLO, Server, server

from tunesmith.core.errors import TunesmithError
from tunesmith.serve.app import ServerLimits, make_app
from tunesmith.serve.body import read_json_object
from tunesmith.serve.errors import ApiError

SECRET = "a-prompt-that-must-stay-private"
LONG: dict[str, Any] = {"model": "tiny", "prompt": [[5] * 8], "logit_bias": {"2": -100}, "max_tokens": 400}
STREAM: dict[str, Any] = {**HELLO, "model": "tiny", "logit_bias": {"2": -100}, "max_tokens": 400, "stream": True}


def test_health_readiness_and_metrics(served: Server) -> None:
    served.post("/v1/chat/completions", model="tiny", **HELLO)
    served.post("/v1/chat/completions", model="other", **HELLO)
    text = served.client.get("/metrics").text
    assert 'tunesmith_requests_total{route="/v1/chat/completions",status="404"}' in text
    assert text.count("tunesmith_first_token_seconds_count") == 1
    assert "tunesmith_new_tokens 0.0" not in text
    documented = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert len(names) > 8
    assert [name for name in names if name.removesuffix("_total") not in documented] == []
    assert served.client.get("/readyz").json() == {"status": "ready", "models": {"tiny": "tiny"}, "failures": {}}


def test_a_draining_server_is_not_ready(tuned: str) -> None:
    with server(f"tiny={tuned}") as running:
        running.service.stop()
        assert (running.client.get("/readyz").status_code, running.client.get("/healthz").status_code) == (503, 200)


def test_a_dead_worker_is_not_healthy(tuned: str) -> None:
    with server(f"tiny={tuned}") as running:
        running.worker("tiny").close()
        assert (running.client.get("/readyz").status_code, running.client.get("/healthz").status_code) == (503, 503)
        response = running.post("/v1/chat/completions", model="tiny", **HELLO)
        assert (response.status_code, response.json()["error"]["type"]) == (503, "server_error")


def test_a_full_queue_is_429_with_a_time_to_retry(tuned: str) -> None:
    with server(f"tiny={tuned}", max_waiting=0) as running:
        slots = running.worker("tiny").capacity.slots
        responses: list[Any] = []
        started = [
            threading.Thread(target=lambda: responses.append(running.post("/v1/completions", **LONG)))
            for _ in range(slots + 4)
        ]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        statuses = sorted(response.status_code for response in responses)
        assert statuses[:slots] == [200] * slots
        refused = [response for response in responses if response.status_code == 429]
        assert statuses[slots:] == [429] * len(refused)
        assert refused, "more requests at once than slots"
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
        assert running.post("/v1/completions", **{**LONG, "max_tokens": 2}).status_code == 200


def test_an_answer_that_takes_too_long_is_504(tuned: str) -> None:
    with server(f"tiny={tuned}", limits=ServerLimits(answer_seconds=0.05)) as running:
        response = running.post("/v1/completions", **LONG)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        streamed = running.post("/v1/chat/completions", **STREAM)
        assert streamed.text.count("[DONE]") == 1
        assert '"code": "deadline_exceeded"' in streamed.text
    with server(f"tiny={tuned}") as running:
        assert running.post("/v1/completions", **{**LONG, "max_tokens": 2}).status_code == 200


def test_a_slow_body_is_408() -> None:
    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(ApiError) as caught:
        asyncio.run(read_json_object(Request(scope, receive), max_bytes=10**6, seconds=0.1))
    assert (caught.value.status, caught.value.headers) == (408, {"connection": "close"})


@pytest.mark.parametrize("error", [RuntimeError(SECRET), TunesmithError("ours", code="unexpected"), KeyError(SECRET)])
def test_an_unexpected_error_is_500_and_quotes_no_prompt(
    tuned: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with server(f"tiny={tuned}") as running:
        monkeypatch.setattr(type(running.service.catalog.find("tiny").prompts), "encode_messages", fail)
        client = TestClient(make_app(running.service, key=None, hosts=None), raise_server_exceptions=False)
        messages = [{"role": "user", "content": SECRET}]
        response = client.post(f"/v1/chat/completions?q={SECRET}", json={"model": "tiny", "messages": messages})
        assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
        monkeypatch.undo()
        assert client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages}).status_code == 200
    log = capsys.readouterr().err
    assert SECRET not in log + response.text
    assert log.count("/v1/chat/completions 500") == 1


def test_the_log_has_no_control_characters(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    client = TestClient(make_app(served.service, key=None, hosts=None))
    client.get("/v1/%1b[31m%0a%0d127.0.0.1 GET forged")
    log = capsys.readouterr().err
    assert log.count("\n") == 1
    assert "\x1b" not in log
