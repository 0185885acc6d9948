"""Chat completions: the response, and the chunks of a stream."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from tunesmith.inference.request import Token
from tunesmith.serve.answers import Collected, collect, envelope, finish_reason, usage_of
from tunesmith.serve.generation import Generation
from tunesmith.serve.logprobs import chat_logprobs
from tunesmith.serve.plan import Plan
from tunesmith.serve.schema import ChatRequest
from tunesmith.serve.work import Done


async def chat_answer(request: ChatRequest, plan: Plan) -> dict[str, Any]:
    """Return the response of a chat completion."""
    answers = await collect(plan)
    choices = [_choice(request, plan, place, answer) for place, answer in enumerate(answers)]
    response = {
        **envelope("chat.completion", plan.model),
        "choices": choices,
        "usage": usage_of(plan, sum(len(answer.ids) for answer in answers)),
    }
    return {**response, "prompt_token_ids": list(plan.prompts[0])} if request.return_token_ids else response


def _choice(request: ChatRequest, plan: Plan, place: int, answer: Collected) -> dict[str, Any]:
    prompts = plan.model.prompts
    text = prompts.answer_text(answer.ids, plan.stop)
    scores = _logprobs(request, plan, answer.scores)
    choice = {
        "index": place,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": scores,
        "finish_reason": answer.finish_reason,
    }
    return {**choice, "token_ids": list(answer.ids)} if request.return_token_ids else choice


async def chat_chunks(request: ChatRequest, plan: Plan) -> AsyncGenerator[dict[str, Any]]:
    """Yield the chunks of a streamed chat completion; raise ApiError if an answer fails."""
    common = envelope("chat.completion.chunk", plan.model)
    streams = [plan.model.prompts.answer_stream(plan.stop) for _ in plan.works]
    held: list[list[Token]] = [[] for _ in plan.works]
    new_tokens = 0

    def chunk(place: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        scores, held[place] = held[place], []
        choice = {"index": place, "delta": delta, "finish_reason": reason}
        choice["logprobs"] = _logprobs(request, plan, scores) if scores else None
        if request.return_token_ids:
            choice["token_ids"] = [score.id for score in scores]
        return {**common, "choices": [choice], **({"usage": None} if request.has_usage else {})}

    async with Generation(plan) as generation:
        for place in range(len(plan.works)):
            yield chunk(place, {"role": "assistant", "content": ""})
        async for place, event in generation:
            if isinstance(event, Token):
                held[place].append(event)
                if text := streams[place].feed(event.id):
                    yield chunk(place, {"content": text})
            elif isinstance(event, Done):
                new_tokens += len(event.answer.ids)
                if (text := streams[place].finish()) or held[place]:
                    yield chunk(place, {"content": text})
                yield chunk(place, {}, finish_reason(event.answer.stopped))
    if request.has_usage:
        yield {**common, "choices": [], "usage": usage_of(plan, new_tokens)}


def _logprobs(request: ChatRequest, plan: Plan, scores: Sequence[Token]) -> dict[str, Any] | None:
    if request.top is None:
        return None
    return chat_logprobs(scores, plan.model.prompts.token_bytes, as_ids=request.return_tokens_as_token_ids)
