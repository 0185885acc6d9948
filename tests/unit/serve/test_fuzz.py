"""Thousands of wrong requests: each is answered in OpenAI's shape, none without the key, and the worker survives."""

import asyncio
import json
import random
from collections import Counter
from typing import Any

import httpx
import psutil
from tests.support.served import HELLO, KEY, Server

from tunesmith.serve.app import make_app
from tunesmith.serve.guard import ApiKey
from tunesmith.serve.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

REQUESTS, TOGETHER = 5000, 10
SCHEMAS = {
    "/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest, "/detokenize": DetokenizeRequest,
}  # fmt: skip
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", **HELLO, "max_tokens": 2},
    "/v1/completions": {"model": "tiny", "prompt": "Say red", "max_tokens": 2},
    "/tokenize": {"model": "tiny", "prompt": "Say red"},
    "/detokenize": {"model": "tiny", "tokens": [5, 6]},
}
VALUES = [
    None, True, False, 0, 1, -1, 2, 17, 10**6, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, 1e-320, "", " ", "x", "\x00",
    "tiny", "tiny@staging", "../../etc/passwd", "\u202e\ufffe", "\U0001f600" * 50, "<|im_end|>", "a" * 20_000, [], [[]],
    [[[]]], {}, {"a": {}}, [1], [-1], [2**40], ["x"], ["x"] * 40, [None], {"role": "user", "content": "x"}, "\ud800",
    [{"role": "user", "content": "x"}], [{"role": "user", "content": ["x"]}], [{"role": "system", "content": ""}],
    [{"role": "user", "content": "a"}] * 400, {"5": 1e9}, {"x": 1}, {"5": -100}, {"include_usage": True}, "json",
]  # fmt: skip
MORE_FIELDS = ["tools", "response_format", "best_of", "frob", "__class__", "", "model ", "messages[0]", "logit_bias"]
STATUSES = {200, 400, 401, 404, 405, 413, 415, 429}


def broken(generator: random.Random, path: str) -> bytes:
    """Return the body of a request with one to three changed, added or removed fields, or damaged JSON."""
    body = dict(VALID[path])
    names = [*SCHEMAS[path].model_fields, *MORE_FIELDS]
    for _ in range(generator.randint(1, 3)):
        name = generator.choice(names)
        if generator.random() < 0.1:
            body.pop(name, None)
        else:
            body[name] = generator.choice(VALUES)
    if isinstance(limit := body.get("max_tokens"), int) and 2 < limit < 2**31:
        body["max_tokens"] = 2  # only time would be lost
    text = json.dumps(body).encode()
    if generator.random() < 0.1:
        place = generator.randrange(len(text))
        text = text[:place] + generator.choice([b"", b"\xff", b"\x00", b"}", b'"', b"NaN"]) + text[place + 1 :]
    return text


async def send_all(served: Server, count: int) -> dict[int, int]:
    """Send broken requests, several at a time; check every response, and return the number of each status."""
    generator = random.Random(0)
    app = make_app(served.service, key=ApiKey(KEY), hosts=None, logs=False)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    statuses: Counter[int] = Counter()

    async def send(client: httpx.AsyncClient) -> None:
        path = generator.choice([*SCHEMAS] * 5 + ["/v1/models", "/metrics", "/v1/x"])
        method = "POST" if generator.random() < 0.95 else generator.choice(["GET", "PUT", "HEAD", "OPTIONS"])
        headers = {"content-type": "application/json" if generator.random() < 0.95 else "text/plain"}
        has_key = generator.random() < 0.8
        wrong_key = {"authorization": f"Bearer {KEY[:-1]}"} if generator.random() < 0.5 else {}
        headers |= {"authorization": f"Bearer {KEY}"} if has_key else wrong_key
        body = broken(generator, path) if path in SCHEMAS else b"{}"
        response = await client.request(method, path, content=body, headers=headers)
        context = (path, body[:300], response.text[:300])
        statuses[response.status_code] += 1
        assert response.status_code in STATUSES, context
        assert has_key or response.status_code == 401, context
        if response.status_code >= 400 and method != "HEAD":
            error = response.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"}, context
            assert error["message"], context

    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
        for _ in range(count // TOGETHER):
            await asyncio.gather(*(send(client) for _ in range(TOGETHER)))
    return statuses


def test_wrong_requests_neither_stop_the_server_nor_pass_the_guard(served: Server) -> None:
    asyncio.run(send_all(served, 500))
    memory = psutil.Process().memory_info().rss
    statuses = asyncio.run(send_all(served, REQUESTS))
    assert statuses[400] > REQUESTS / 3
    assert statuses[200] > REQUESTS / 50
    assert psutil.Process().memory_info().rss < memory + 100 * 2**20
    assert served.worker("tiny").is_alive
    assert served.post("/v1/chat/completions", model="tiny", **HELLO).status_code == 200
