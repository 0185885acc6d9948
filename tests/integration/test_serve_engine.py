"""`serve --engine llama.cpp`: the model is exported, proved, served by llama.cpp itself, and gone with its starter."""

import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support.served import HELLO, KEY, serve_command, wait_until

MESSAGES = HELLO["messages"]


@pytest.fixture
def arguments(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    options = ("--engine", "llama.cpp", "--type", "f32", "--max-tokens", "256")
    return [f"own={finished / 'runs/a'}", *options]


def is_open(facts: dict[str, Any]) -> bool:
    try:
        urllib.request.urlopen(f"{facts['url'].removesuffix('/v1')}/health", timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def test_a_model_is_served_by_llama_cpp(arguments: list[str], finished: Path, tmp_path: Path) -> None:
    with serve_command(*arguments, TUNESMITH_API_KEY=KEY) as (process, facts):
        assert facts["engine"].startswith("llama.cpp b")
        assert (facts["model"], facts["type"], facts["proof"]["passed"]) == ("own", "f32", True)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=facts["url"], api_key="another").chat.completions.create(
                model="own", messages=MESSAGES
            )
        client = openai.OpenAI(base_url=facts["url"], api_key=KEY)
        assert [model.id for model in client.models.list()] == ["own"]
        answer = client.chat.completions.create(model="own", messages=MESSAGES, max_tokens=6, temperature=0)
        assert answer.usage is not None
        assert 0 < answer.usage.completion_tokens <= 6
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not is_open(facts)
        assert process.stderr is not None
        assert KEY not in process.stderr.read()
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/exports").rglob("*.gguf")}
    assert len(first) == 1
    with serve_command(*arguments) as (process, facts):  # without a key, and the export of before
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/exports").rglob("*.gguf")} == first
        process.kill()
        process.wait()
        wait_until(lambda: not is_open(facts), seconds=10)
