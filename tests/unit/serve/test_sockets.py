"""What only a real socket shows: clients that disconnect, send slowly or not at all, and the client of OpenAI."""

import json
import socket
import time
from collections.abc import Iterator

import openai
import pytest
from tests.support.errors import raises
from tests.support.served import HELLO, KEY, Server, listening, server, wait_until

from tunesmith.core.errors import RecipeError
from tunesmith.serve import http_server
from tunesmith.serve.http_server import listen

USER = HELLO["messages"]
LONG = {"model": "tiny", "prompt": [[5] * 8], "logit_bias": {"2": -100}, "max_tokens": 450}


@pytest.fixture(scope="module")
def address(served: Server) -> Iterator[tuple[str, int]]:
    with listening(served, key=KEY) as address:
        yield address


def request_of(path: str, body: dict[str, object], *, key: str = KEY) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def read_until_closed(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def is_idle(running: Server) -> bool:
    """Return whether no request is in the worker."""
    stats = running.worker("tiny").stats
    return not stats.running and not stats.waiting


def test_the_client_of_openai(served: Server, address: tuple[str, int]) -> None:
    url = f"http://{address[0]}:{address[1]}/v1"
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, _strict_response_validation=True)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "tunesmith"
    whole = client.chat.completions.create(model="tiny", messages=USER, max_tokens=20, seed=1)
    stream = client.chat.completions.create(model="tiny", messages=USER, max_tokens=20, seed=1, stream=True)
    parts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(parts) == whole.choices[0].message.content
    assert len(parts) > 3
    completion = client.completions.create(model="tiny", prompt="Say", max_tokens=3, logprobs=1)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=USER, extra_body={"frob": 1})
    assert (caught.value.param, caught.value.code) == ("frob", "unknown_parameter")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=USER)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="wrong-key", max_retries=0).models.list()


def test_the_client_of_langchain(address: tuple[str, int]) -> None:
    chat_models = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    url = f"http://{address[0]}:{address[1]}/v1"
    model = chat_models.ChatOpenAI(base_url=url, api_key=KEY, model="tiny", temperature=0, max_tokens=12, max_retries=0)
    answer = model.invoke("Say red and cat.")
    assert answer.response_metadata["model_name"] == "tiny"
    assert "".join(chunk.content for chunk in model.stream("Say red and cat.")) == answer.content
    assert [each.content for each in model.batch(["Say red and cat."] * 3)] == [answer.content] * 3
    scored = model.bind(logprobs=True, top_logprobs=2).invoke("Say red and cat.")
    assert len(scored.response_metadata["logprobs"]["content"]) == answer.usage_metadata["output_tokens"]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    with pytest.raises(openai.BadRequestError):
        model.bind_tools(tools).invoke("Say red.")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_slot(served: Server, address: tuple[str, int], stream: bool) -> None:
    before = served.worker("tiny").stats
    aborts = 25
    for _ in range(aborts):
        with socket.create_connection(address) as connection:
            connection.sendall(request_of("/v1/completions", {**LONG, "stream": stream}))
            received = 0
            while stream and received < 4:  # the head of the response and three chunks
                received += connection.recv(65536).count(b"data: ") or 1
            if not stream:
                while not served.worker("tiny").stats.running:
                    time.sleep(0.001)
    wait_until(lambda: is_idle(served), seconds=10)
    after = served.worker("tiny").stats
    assert after.cancelled - before.cancelled == aborts
    # All of them together took a fraction of the tokens that one would have taken to its end.
    assert after.new_tokens - before.new_tokens < aborts * LONG["max_tokens"] / 3  # type: ignore[operator]
    assert served.post("/v1/chat/completions", model="tiny", **HELLO).status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_connection_without_a_whole_request_is_closed(
    address: tuple[str, int], sent: bytes, is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_HEADER_SECONDS", 0.2)
    with socket.create_connection(address, timeout=10) as connection:
        if not is_first:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in connection.recv(65536)
            connection.settimeout(60)
        connection.sendall(sent or b"G" * (not is_first))
        read_until_closed(connection)


def test_slow_clients_leave_the_server_to_others(served: Server, address: tuple[str, int]) -> None:
    slow = [socket.create_connection(address) for _ in range(100)]
    try:
        head = request_of("/v1/completions", LONG)[:-5]  # the end of the body never comes
        for connection in slow:
            connection.sendall(head)
        began = time.monotonic()
        client = openai.OpenAI(base_url=f"http://localhost:{address[1]}/v1", api_key=KEY, max_retries=0)
        assert client.chat.completions.create(model="tiny", messages=USER, max_tokens=2).choices
        assert time.monotonic() - began < 10
    finally:
        for connection in slow:
            connection.close()


def test_a_refused_request_does_not_wait_for_its_body(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        head = request_of("/v1/completions", LONG, key="wrong-key").split(b"\r\n\r\n")[0]
        connection.sendall(head + b"\r\n\r\n")
        assert b" 401 " in read_until_closed(connection)


def test_a_forged_host_is_refused(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: rebound.example\r\n\r\n")
        assert b" 403 " in read_until_closed(connection)


def test_a_port_that_is_taken_is_refused(address: tuple[str, int]) -> None:
    with raises(RecipeError, "port-in-use", where=str(address[1])):
        listen(*address)
    with raises(RecipeError, "wrong-host"):
        listen("no-such-host.invalid", 0)


def test_requests_in_flight_are_answered_before_the_server_stops(tuned: str) -> None:
    with server(f"tiny={tuned}") as running:
        with listening(running) as address:
            connections = [socket.create_connection(address) for _ in range(6)]
            for connection in connections:
                connection.sendall(request_of("/v1/completions", {**LONG, "max_tokens": 100}))
            while running.worker("tiny").stats.running < len(connections):
                time.sleep(0.001)
        for connection in connections:  # the server has stopped
            response = read_until_closed(connection)
            assert response.startswith(b"HTTP/1.1 200 "), response
            assert b'"completion_tokens": 100' in response
            connection.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
