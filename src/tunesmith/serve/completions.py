"""Completions of texts and token ids: the response, and the chunks of a stream."""

from collections.abc import AsyncGenerator
from typing import Any

from tunesmith.inference.request import Token
from tunesmith.serve.answers import Collected, collect, envelope, finish_reason, usage_of
from tunesmith.serve.generation import Generation
from tunesmith.serve.logprobs import completion_logprobs
from tunesmith.serve.plan import Ids, Plan
from tunesmith.serve.schema import CompletionRequest
from tunesmith.serve.work import Done


async def completion_answer(request: CompletionRequest, plan: Plan) -> dict[str, Any]:
    """Return the response of a completion."""
    answers = await collect(plan)
    choices = [_choice(request, plan, place, answer) for place, answer in enumerate(answers)]
    usage = usage_of(plan, sum(len(answer.ids) for answer in answers))
    return {**envelope("text_completion", plan.model), "choices": choices, "usage": usage}


def _choice(request: CompletionRequest, plan: Plan, place: int, answer: Collected) -> dict[str, Any]:
    prompts, prompt = plan.model.prompts, plan.prompts[place // request.n]
    text = prompts.continued_text(answer.ids, plan.stop)
    scores = answer.scores
    if request.echo:
        text, scores = prompts.decode(prompt) + text, [*answer.prompt_scores, *scores]
    choice = {
        "index": place,
        "text": text,
        "logprobs": _logprobs(request, plan, scores),
        "finish_reason": answer.finish_reason,
    }
    return {**choice, **_ids(prompt, answer.ids)} if request.return_token_ids else choice


def _logprobs(request: CompletionRequest, plan: Plan, scores: list[Token], *, offset: int = 0) -> dict[str, Any] | None:
    if request.top is None:
        return None
    token_bytes, as_ids = plan.model.prompts.token_bytes, request.return_tokens_as_token_ids
    return completion_logprobs(scores, token_bytes, top=request.top, as_ids=as_ids, offset=offset)


def _ids(prompt: Ids | None, ids: Any) -> dict[str, Any]:
    """Return the fields of `return_token_ids`, as vLLM names them."""
    return {"prompt_token_ids": None if prompt is None else list(prompt), "token_ids": list(ids)}


async def completion_chunks(request: CompletionRequest, plan: Plan) -> AsyncGenerator[dict[str, Any]]:
    """Yield the chunks of a streamed completion; raise ApiError if an answer fails."""
    common = envelope("text_completion", plan.model)
    streams = [plan.model.prompts.continued_stream(plan.stop) for _ in plan.works]
    held: list[list[Token]] = [[] for _ in plan.works]
    sent = [0] * len(plan.works)  # characters
    is_first = [True] * len(plan.works)
    new_tokens = 0

    def chunk(place: int, text: str, reason: str | None = None) -> dict[str, Any]:
        scores, held[place] = held[place], []
        logprobs = _logprobs(request, plan, scores, offset=sent[place]) if scores else None
        choice = {"index": place, "text": text, "logprobs": logprobs, "finish_reason": reason}
        if request.return_token_ids:
            prompt = plan.prompts[place // request.n] if is_first[place] else None
            choice |= _ids(prompt, (score.id for score in scores))
        sent[place] += len(text)
        is_first[place] = False
        return {**common, "choices": [choice], **({"usage": None} if request.has_usage else {})}

    async with Generation(plan) as generation:
        async for place, event in generation:
            if isinstance(event, Token):
                held[place].append(event)
                if text := streams[place].feed(event.id):
                    yield chunk(place, text)
            elif isinstance(event, Done):
                new_tokens += len(event.answer.ids)
                yield chunk(place, streams[place].finish(), finish_reason(event.answer.stopped))
    if request.has_usage:
        yield {**common, "choices": [], "usage": usage_of(plan, new_tokens)}
