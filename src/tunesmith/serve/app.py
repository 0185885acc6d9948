"""The routes of the server."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from tunesmith.serve.access import Access
from tunesmith.serve.body import read_json_object
from tunesmith.serve.catalog import Catalog, LoadedModel
from tunesmith.serve.chat import chat_answer, chat_chunks
from tunesmith.serve.completions import completion_answer, completion_chunks
from tunesmith.serve.errors import invalid
from tunesmith.serve.guard import ApiKey, Guard
from tunesmith.serve.logprobs import token_text
from tunesmith.serve.metrics import CONTENT_TYPE, Metrics
from tunesmith.serve.plan import Ids, Plan, plan_request
from tunesmith.serve.respond import EventStream, JsonAnswer
from tunesmith.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Message,
    TokenizeRequest,
    texts_of,
)

T = TypeVar("T")
_VERSION_HEADER = "x-tunesmith-model"
_NO_STORE = {"cache-control": "no-store"}


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of requests.

    Attributes:
        answer_seconds: the time in which an answer must be complete, including its time in the queue.
        body_seconds: the time in which a request's body must arrive.
        body_bytes: the largest body.
    """

    answer_seconds: float = 300.0
    body_seconds: float = 30.0
    body_bytes: int = 2 * 2**20


@dataclass
class Service:
    """The state that all routes share.

    Attributes:
        is_draining: whether the server finishes its requests and then exits.
    """

    catalog: Catalog
    metrics: Metrics = field(default_factory=Metrics)
    limits: ServerLimits = field(default_factory=ServerLimits)
    is_draining: bool = False
    # Encoding a long prompt takes a while, in which other requests must not wait.
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "prompts"))

    def stop(self) -> None:
        """Report that the server finishes its requests and takes no new ones."""
        self.is_draining = True

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    async def body(self, request: Request) -> dict[str, Any]:
        """Return the JSON object in the body of a request."""
        limits = self.limits
        return await read_json_object(request, max_bytes=limits.body_bytes, seconds=limits.body_seconds)

    def find(self, request: Request, name: str) -> LoadedModel:
        """Return the model that a request names, and note it for the log."""
        model = self.catalog.find(name)
        request.scope["notes"].model = model.name
        return model

    # ---- generation ----

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a conversation."""
        asked = ChatRequest.parse(await self.body(request))
        model = self.find(request, asked.model)
        prompt = await self._conversation(model, asked.messages, asked.row)
        plan = self._plan(request, asked, model, [prompt])
        if asked.stream:
            return self._stream(model, chat_chunks(asked, plan))
        return JsonAnswer(chat_answer(asked, plan), _headers(model))

    async def complete(self, request: Request) -> ASGIApp:
        """Continue texts or token ids."""
        asked = CompletionRequest.parse(await self.body(request))
        model = self.find(request, asked.model)
        prompts = [
            await self.in_thread(model.prompts.encode_text, prompt) if isinstance(prompt, str) else tuple(prompt)
            for prompt in asked.prompt
        ]
        plan = self._plan(request, asked, model, prompts)
        if asked.stream:
            return self._stream(model, completion_chunks(asked, plan))
        return JsonAnswer(completion_answer(asked, plan), _headers(model))

    def _plan(
        self, request: Request, asked: ChatRequest | CompletionRequest, model: LoadedModel, prompts: Sequence[Ids]
    ) -> Plan:
        began: float = request.scope["notes"].began

        def note_first_token() -> None:
            self.metrics.first_token.labels(model.name).observe(time.perf_counter() - began)

        seconds = self.limits.answer_seconds
        return plan_request(asked, model, prompts, seconds=seconds, on_first_token=note_first_token)

    def _stream(self, model: LoadedModel, chunks: Any) -> EventStream:
        # The worker's own limit ends the answer; this one ends a client that does not read it.
        return EventStream(chunks, _headers(model), seconds=2 * self.limits.answer_seconds)

    async def _conversation(self, model: LoadedModel, messages: Sequence[Message], row: Any) -> Ids:
        if row is not None:
            return await self.in_thread(model.prompts.encode_row, row)
        return await self.in_thread(model.prompts.encode_messages, texts_of(messages))

    # ---- tokens ----

    async def tokenize(self, request: Request) -> Response:
        """Return the ids of a text, or of the prompt of a conversation."""
        asked = TokenizeRequest.parse(await self.body(request))
        model = self.find(request, asked.model)
        if asked.prompt is not None:
            ids: Sequence[int] = await self.in_thread(model.prompts.tokenize, asked.prompt, asked.add_special_tokens)
        else:
            ids = await self._conversation(model, asked.messages, asked.row)
        texts = await self.in_thread(_texts, model, ids) if asked.return_token_strs else None
        length = model.max_tokens
        value = {"count": len(ids), "max_model_len": length, "tokens": list(ids), "token_strs": texts}
        return JSONResponse(value, headers=_headers(model))

    async def detokenize(self, request: Request) -> Response:
        """Return the text of ids."""
        asked = DetokenizeRequest.parse(await self.body(request))
        model = self.find(request, asked.model)
        if unknown := [token for token in asked.tokens if not 0 <= token < model.prompts.vocab_size]:
            raise invalid("tokens", f"{unknown[0]} is not in the vocabulary of {model.prompts.vocab_size:,} tokens")
        text = await self.in_thread(model.prompts.decode, asked.tokens)
        return JSONResponse({"prompt": text}, headers=_headers(model))

    # ---- models and state ----

    async def models(self, request: Request) -> Response:
        """List the models by name."""
        data = [model.to_json(name) for name, model in self.catalog.models.items()]
        return JSONResponse({"object": "list", "data": data}, headers=_NO_STORE)

    async def model(self, request: Request) -> Response:
        """Describe one model."""
        name = request.path_params["name"]
        return JSONResponse(self.find(request, name).to_json(name), headers=_NO_STORE)

    async def health(self, request: Request) -> Response:
        """Report whether the process works; a supervisor restarts it if not. Anyone may ask."""
        alive = all(model.worker.is_alive for model in self.catalog.models.values())
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503, headers=_NO_STORE)

    async def ready(self, request: Request) -> Response:
        """Report whether new requests are welcome, the version behind each name, and versions that failed to load."""
        catalog = self.catalog
        alive = all(model.worker.is_alive for model in catalog.models.values())
        is_ready = alive and not self.is_draining
        status = "ready" if is_ready else "draining" if self.is_draining else "failed"
        served = {name: model.name for name, model in catalog.models.items()}
        value = {"status": status, "models": served, "failures": catalog.failures}
        return JSONResponse(value, 200 if is_ready else 503, headers=_NO_STORE)

    async def prometheus(self, request: Request) -> Response:
        """Return the metrics."""
        return Response(self.metrics.render(), headers={"content-type": CONTENT_TYPE, **_NO_STORE})

    def routes(self) -> list[Route]:
        """Return all routes."""
        return [
            _route("/v1/chat/completions", self.chat, "POST"),
            _route("/v1/completions", self.complete, "POST"),
            _route("/v1/models", self.models, "GET"),
            _route("/v1/models/{name:path}", self.model, "GET"),
            _route("/tokenize", self.tokenize, "POST"),
            _route("/detokenize", self.detokenize, "POST"),
            _route("/healthz", self.health, "GET"),
            _route("/readyz", self.ready, "GET"),
            _route("/metrics", self.prometheus, "GET"),
        ]


def _texts(model: LoadedModel, ids: Sequence[int]) -> list[str]:
    return [token_text(model.prompts.token_bytes(token)) for token in ids]


def _headers(model: LoadedModel) -> dict[str, str]:
    """Return the headers of every answer: the version that answered."""
    return {_VERSION_HEADER: model.name, **_NO_STORE}


def _route(path: str, endpoint: Callable[[Request], Any], method: str) -> Route:
    async def noted(request: Request) -> Any:
        request.scope["notes"].route = path
        return await endpoint(request)

    return Route(path, noted, methods=[method])


def make_app(service: Service, *, key: ApiKey | None, hosts: frozenset[str] | None, logs: bool = True) -> ASGIApp:
    """Return the server's ASGI application.

    Args:
        key: the key that every route but /healthz asks for.
        hosts: the names that the Host header may have; None allows any.
        logs: whether each request is logged.
    """
    router = Router(service.routes(), redirect_slashes=False)

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # so that a wrong path or method raises an exception instead of answering in plain text
        await router(scope, receive, send)

    return Access(Guard(routed, key=key, hosts=hosts), service.metrics, logs=logs)
