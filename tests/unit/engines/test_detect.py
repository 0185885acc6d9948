"""Which program a URL is, from the replies of its routes, and which name it knows the model by."""

from typing import Any

import pytest
from tests.support.endpoint import choice, endpoint
from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.engines.detect import detect_engine
from tunesmith.engines.llama_cpp import LlamaCpp
from tunesmith.engines.openai_api import OpenAiApi
from tunesmith.engines.vllm import VllmApi
from tunesmith.proof.tolerances import tolerance_for

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.core.json_server._PAUSES", ())
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def server_of(owner: str, *names: str, **routes: Any) -> Any:
    """Return the reply of a server with some models, and with routes by their name without slashes."""
    models = {"data": [{"id": name, "owned_by": owner} for name in names]}
    replies = {"/v1/models": models, **{f"/{name.replace('__', '/')}": reply for name, reply in routes.items()}}
    return lambda request: (200, replies[request["path"]]) if request["path"] in replies else (404, {})


@pytest.mark.parametrize(
    ("owner", "routes", "kind", "name"),
    [
        ("llamacpp", {"props": {"build_info": "b6000-abc"}}, LlamaCpp, "llama.cpp b6000-abc"),
        ("llamacpp", {"props": {"build_info": "b0-unknown"}}, LlamaCpp, "llama.cpp"),
        ("vllm", {"version": {"version": "0.32.0"}}, VllmApi, "vLLM 0.32.0"),
        ("vllm", {}, VllmApi, "vLLM"),
        ("tunesmith", {}, VllmApi, "tunesmith"),
        ("library", {}, OpenAiApi, "OpenAI-compatible server"),
    ],
)
@pytest.mark.parametrize("end", ["", "/"])
def test_the_owner_of_the_models_decides(owner: str, routes: dict[str, Any], kind: type, name: str, end: str) -> None:
    with endpoint(server_of(owner, "m", **routes)) as (url, _):
        found = detect_engine(f"{url}{end}")
        assert (type(found.engine), found.engine.name, found.model) == (kind, name, "m")
        assert type(detect_engine(url.removesuffix("/v1"), "m").engine) is kind


@pytest.mark.parametrize(
    ("ftype", "expected"),
    [("all F32", "f32"), ("F16", "f16"), ("Q4_K - Medium", "q4_k"), ("Q8_0", "q8_0"), ("", None)],
)
def test_the_type_is_that_of_the_served_file(ftype: str, expected: str | None) -> None:
    with endpoint(server_of("llamacpp", "m", props={"model_ftype": ftype})) as (url, _):
        assert detect_engine(url).type == expected
    if expected is not None:
        tolerance_for(expected)  # which raises if there is no such type


def test_a_server_without_token_ids_answers_conversations_only() -> None:
    with endpoint(server_of("me", "a", "b", v1__chat__completions=choice("hello", "length"))) as (url, requests):
        engine = detect_engine(url, "b").engine
        answer = engine.answer_chat(HI, max_new_tokens=3)
        assert answer is not None
        assert (answer.text, answer.ids, answer.stopped) == ("hello", None, False)
        assert requests[-1]["model"] == "b"
        assert (requests[-1]["temperature"], requests[-1]["max_tokens"]) == (0.0, 3)
        results = (engine.encode("a"), engine.encode_chat(HI), engine.token_scores([1], [2], 3))
        assert (*results, engine.answer([1], max_new_tokens=3)) == (None,) * 4
        engine.close()


def test_the_key_is_sent_to_every_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with endpoint(server_of("vllm", "m", version={"version": "1"}, tokenize={"tokens": [1]})) as (url, requests):
        assert detect_engine(url).engine.encode("a") == [1]
        assert {request["key"] for request in requests} == {"Bearer secret"}
        assert [request["path"] for request in requests] == ["/v1/models", "/version", "/tokenize"]


def test_a_model_that_is_not_served_is_refused_before_it_is_asked() -> None:
    with endpoint(server_of("llamacpp", "shop-sql.gguf")) as (url, requests):
        with raises(RecipeError, "unknown-model", "shop-sql.gguf"):
            detect_engine(url, "shop-sql")
        assert [request["path"] for request in requests] == ["/v1/models"]


def test_one_of_several_models_must_be_named() -> None:
    with (
        endpoint(server_of("vllm", "base", "tuned")) as (url, _),
        raises(RecipeError, "unknown-model", "base, tuned"),
    ):
        detect_engine(url)


def test_a_server_without_a_list_of_models_needs_a_name() -> None:
    with endpoint(lambda request: (404, {})) as (url, _):
        with raises(RecipeError, "unknown-model"):
            detect_engine(url)
        assert isinstance(detect_engine(url, "m").engine, OpenAiApi)


@pytest.mark.parametrize("response", [{}, [], {"data": {}}, {"data": [1]}])
def test_a_server_of_another_kind_is_refused(response: Any) -> None:
    with endpoint(lambda request: (200, response)) as (url, _), raises(RecipeError, "server-failed", url):
        detect_engine(url)


def test_scores_and_answers_of_vllm_are_by_token_ids() -> None:
    logprobs = {
        "token_logprobs": [None, -1.0, -7.5], "top_logprobs": [None, {"token_id:5": -1.0}, {"token_id:8": -0.5}],
    }  # fmt: skip
    reply = {"choices": [{"text": "x", "token_ids": [5, 6], "finish_reason": "stop", "logprobs": logprobs}]}
    for owner, ids in (("vllm", (5,)), ("tunesmith", (5, 6))):
        with endpoint(server_of(owner, "m", v1__completions=reply)) as (url, requests):
            engine = detect_engine(url).engine
            assert engine.token_scores([1], [5, 6], 1) == [{5: -1.0}, {8: -0.5, 6: -7.5}]
            assert requests[-1]["prompt"] == [1, 5, 6]
            answer = engine.answer([1], max_new_tokens=4)
            assert answer is not None
            assert (answer.ids, answer.stopped) == (ids, True)


def test_an_adapter_in_vllm_is_scored_without_the_route_that_ends_the_server() -> None:
    greedy = {1: ["token_id:5", "token_id:6"], 3: ["token_id:9"]}  # by the length of the prompt
    models = {"data": [{"id": "a", "owned_by": "vllm", "parent": "m"}, {"id": "m", "owned_by": "vllm"}]}

    def reply(request: dict[str, Any]) -> tuple[int, Any]:
        if request["path"] != "/v1/completions":
            return (200, models) if request["path"] == "/v1/models" else (404, {})
        assert not request["echo"]
        tokens = greedy[len(request["prompt"])]
        rows = [{token: -0.25, "token_id:8": -2.0} for token in tokens]
        return 200, {"choices": [{"logprobs": {"tokens": tokens, "top_logprobs": rows}}]}

    with endpoint(reply) as (url, requests):
        scores = detect_engine(url, "a").engine.token_scores([1], [5, 8, 9], 2)
    assert scores == [{5: -0.25, 8: -2.0}, {6: -0.25, 8: -2.0}, {9: -0.25, 8: -2.0}]
    assert [request["prompt"] for request in requests[2:]] == [[1], [1, 5, 8]]
