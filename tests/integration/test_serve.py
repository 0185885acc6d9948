"""The command `serve` as a process: the client of OpenAI, SIGTERM and kill -9 with requests in flight."""

import signal
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support.served import HELLO, KEY, register, serve_command
from tests.support.tuned import CHAT, tuned_model

LONG: dict[str, Any] = {**HELLO, "model": "tiny", "logit_bias": {"2": -100}, "max_tokens": 300}


@pytest.fixture
def registered(tiny: Path, tmp_path: Path) -> str:
    """A tuned tiny model in the registry."""
    return register(tuned_model(tiny, tmp_path / "tuned", CHAT, precision="fp32"))


def client_of(facts: dict[str, Any]) -> openai.OpenAI:
    return openai.OpenAI(base_url=facts["url"], api_key=KEY, max_retries=0, _strict_response_validation=True)


def test_a_killed_server_starts_again_and_sigterm_finishes_requests(registered: str) -> None:
    arguments = ("tiny@staging", "--max-tokens", "400")
    with serve_command(*arguments, TUNESMITH_API_KEY=KEY) as (process, facts):
        assert facts["models"] == {"tiny@staging": registered, "tiny@1": registered, "tiny": registered}
        assert facts["workers"][0]["slot_tokens"] == 400
        client = client_of(facts)
        answer = client.chat.completions.create(model="tiny", messages=HELLO["messages"], max_tokens=8)
        stream = client.chat.completions.create(**LONG, stream=True)
        next(iter(stream))
        process.kill()
        with pytest.raises(openai.APIConnectionError):
            list(stream)
        port = facts["url"].split(":")[2].split("/")[0]
    with serve_command(*arguments, "--port", port, TUNESMITH_API_KEY=KEY) as (process, facts):
        client = client_of(facts)
        again = client.chat.completions.create(model="tiny", messages=HELLO["messages"], max_tokens=8)
        assert again.choices == answer.choices
        assert again.model == registered
        results: list[Any] = []
        streams = [client.chat.completions.create(**LONG, stream=True) for _ in range(6)]
        for started in streams:
            next(iter(started))
        readers = [threading.Thread(target=lambda one=one: results.append(list(one))) for one in streams]
        process.send_signal(signal.SIGTERM)
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert process.wait(30) == 0
        assert [chunks[-1].choices[0].finish_reason for chunks in results] == ["length"] * 6
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
        assert process.stderr is not None
        log = process.stderr.read()
        assert KEY not in log
        assert "Say red" not in log
