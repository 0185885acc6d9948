"""`tunesmith prove` against a real llama.cpp: of the tuned model, of its base, and with chat completions only."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cases import Command
from tests.support.endpoint import endpoint
from tests.support.llama_cpp import LlamaCpp
from tests.support.served import serve_command

from tunesmith.core.json_server import JsonServer
from tunesmith.export.formats import Options
from tunesmith.export.merged import build
from tunesmith.fetch.reference import resolve
from tunesmith.gguf.write import write_gguf

CHECKS = ("ids", "template", "logits", "answers", "verdict")


def llama_cpp_of(folder: Path) -> LlamaCpp:
    """Serve a folder as a GGUF file in f32."""
    write_gguf(folder, folder / "model.gguf", type="f32")
    return LlamaCpp(folder / "model.gguf")


@pytest.fixture(scope="module")
def served(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    """The tuned model of a run in a llama.cpp."""
    folder = tmp_path_factory.mktemp("merged")
    build(resolve(str(finished / "runs/a")), folder, Options(type="f32"))
    with llama_cpp_of(folder) as engine:
        yield engine


def statuses(out: str) -> dict[str, str]:
    """Return {check: status} of the command's JSON."""
    return {check["name"]: check["status"] for check in json.loads(out)["checks"]}


def test_the_tuned_model_is_proved(tunesmith: Command, finished: Path, served: LlamaCpp) -> None:
    result = tunesmith("prove", served.url, finished / "runs/a", "--json")
    assert result.code == 0, result
    assert statuses(result.out) == dict.fromkeys(CHECKS, "passed")
    proof = json.loads(result.out)
    assert (proof["type"], proof["engine"]) == ("f32", "llama.cpp")
    text = tunesmith("prove", f"{served.url}/v1", finished / "runs/a", "--served-as", "model.gguf", "--rows", 2)
    assert text.code == 0, text
    assert "2 test rows" in text.out


def test_another_model_fails_with_an_exit_code_of_its_own(tunesmith: Command, finished: Path, tmp_path: Path) -> None:
    base = shutil.copytree(resolve(str(finished / "runs/a")).root.path, tmp_path / "base")
    with llama_cpp_of(base) as engine:
        result = tunesmith("prove", engine.url, finished / "runs/a", "--json")
    assert result.code == 8, result
    assert statuses(result.out)["ids"] == "passed"
    assert "failed" in (statuses(result.out)["logits"], statuses(result.out)["answers"])
    assert json.loads(result.out)["error"]["code"] == "not-proved"


def test_a_server_of_chat_completions_allows_two_checks(tunesmith: Command, finished: Path, served: LlamaCpp) -> None:
    server = JsonServer(served.url)

    def reply(request: dict[str, Any]) -> tuple[int, Any]:
        path = request.pop("path")
        if path == "/v1/models":
            return 200, {"data": [{"id": "m", "owned_by": "me"}]}
        return (200, server.post(path, request)) if path == "/v1/chat/completions" else (404, {})

    with endpoint(reply) as (url, _):
        result = tunesmith("prove", url, finished / "runs/a", "--json")
    assert result.code == 0, result
    missing = dict.fromkeys(("ids", "template", "logits"), "not possible")
    assert statuses(result.out) == {**missing, "answers": "passed", "verdict": "passed"}


def test_tunesmiths_own_server_allows_every_check(tunesmith: Command, finished: Path) -> None:
    with serve_command(f"own={finished / 'runs/a'}", "--precision", "fp32") as (_, facts):
        result = tunesmith("prove", facts["url"], finished / "runs/a", "--served-as", "own", "--json")
    assert result.code == 0, result
    assert statuses(result.out) == dict.fromkeys(CHECKS, "passed")


def test_a_model_that_is_not_served_is_refused(tunesmith: Command, finished: Path, served: LlamaCpp) -> None:
    result = tunesmith("prove", served.url, finished / "runs/a", "--served-as", "shop-sql", "--json")
    assert result.code == 2
    assert "model.gguf" in result.output
