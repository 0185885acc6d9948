"""Which program answers at a URL, and how it can be asked."""

import os
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import RecipeError, TunesmithError
from tunesmith.core.json_server import JsonServer, RequestRefused
from tunesmith.core.suggest import did_you_mean
from tunesmith.engines.base import Engine
from tunesmith.engines.llama_cpp import LlamaCpp
from tunesmith.engines.openai_api import OpenAiApi
from tunesmith.engines.vllm import VllmApi


@dataclass(frozen=True, slots=True)
class Detected:
    """A running server.

    Attributes:
        model: the name under which it has the model.
        type: the type of the model's weights, such as `q8_0`; None if the server does not give it.
    """

    engine: Engine
    model: str
    type: str | None = None


def detect_engine(url: str, model: str | None = None) -> Detected:
    """Find out which program a URL is, by the owner that its list of models names and by its own routes.

    Args:
        url: the root of a server, with or without /v1. The key is in OPENAI_API_KEY, if the server needs one.
        model: the name under which the server has the model; not needed if it serves only one.

    Raises:
        RecipeError: the server cannot be reached, refuses the key, has no OpenAI-compatible API or does not serve
            this model.
    """
    root = url.rstrip("/").removesuffix("/v1")
    server = JsonServer(root, key=os.environ.get("OPENAI_API_KEY"))
    models = _models(server)
    name = _choose(models, model, root)
    owner = models[0].get("owned_by") if models else None
    if owner == "llamacpp":
        facts = _ask(server, "/props")
        type = facts.get("model_ftype", "").removeprefix("all ").partition(" ")[0].lower()  # "all F32", "Q4_K - Medium"
        return Detected(LlamaCpp(server, name, _named("llama.cpp", facts.get("build_info"))), name, type or None)
    if owner == "vllm":
        is_adapter = any(entry["id"] == name and entry.get("parent") for entry in models)
        version = _ask(server, "/version").get("version")
        return Detected(VllmApi(server, name, _named("vLLM", version), is_adapter=is_adapter), name)
    if owner == "tunesmith":
        return Detected(VllmApi(server, name, "tunesmith", ids_have_end=False), name)
    return Detected(OpenAiApi(server.below("/v1"), name), name)


def _models(server: JsonServer) -> list[dict[str, Any]]:
    """Return the models that a server lists; none if it has no list."""
    try:
        response = server.get("/v1/models", patient=False)
    except RequestRefused:
        return []
    models = response.get("data") if isinstance(response, dict) else None
    if not isinstance(models, list) or not all(isinstance(model, dict) and "id" in model for model in models):
        message, hint = "does not list its models as OpenAI's API does", "check the URL"
        raise RecipeError(message, where=f"{server.url}/v1/models", hint=hint, code="server-failed")
    return models


def _choose(models: list[dict[str, Any]], model: str | None, url: str) -> str:
    """Return the name to ask for. Some servers, such as llama.cpp, accept any name, so the list decides."""
    names = [str(entry["id"]) for entry in models]
    if model is None and len(names) == 1:
        return names[0]
    if model is None:
        problem = "serves several models" if names else "does not list its models"
        hint = f"name one of them with --served-as: {', '.join(names)}" if names else "name one with --served-as"
        raise RecipeError(problem, where=url, hint=hint, code="unknown-model")
    if names and model not in names:
        raise RecipeError(f"does not serve {model!r}", where=url, hint=did_you_mean(model, names), code="unknown-model")
    return model


def _ask(server: JsonServer, route: str) -> dict[str, str]:
    """Return the texts that a route gives; none if there is no such route."""
    try:
        response = server.get(route, patient=False)
    except TunesmithError:
        return {}
    return {key: value for key, value in dict(response).items() if isinstance(value, str)}


def _named(program: str, version: str | None) -> str:
    """Return a program with its version; builds of llama.cpp by others have the version "b0-unknown"."""
    return program if version is None or version.startswith("b0-") else f"{program} {version}"
