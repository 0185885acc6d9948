"""Collect the answers of a generation, and describe them as OpenAI's API does."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.inference.request import Token
from tunesmith.serve.catalog import LoadedModel
from tunesmith.serve.generation import Generation
from tunesmith.serve.plan import Plan
from tunesmith.serve.work import Done, PromptScored

Kind = Literal["chat.completion", "chat.completion.chunk", "text_completion"]
_PREFIX = {"chat.completion": "chatcmpl", "chat.completion.chunk": "chatcmpl", "text_completion": "cmpl"}


@dataclass(slots=True)
class Collected:
    """One complete answer: its ids without the stop token, and the score of each."""

    ids: Sequence[int] = ()
    stopped: bool = False
    scores: list[Token] = field(default_factory=list)
    prompt_scores: list[Token] = field(default_factory=list)

    @property
    def finish_reason(self) -> str:
        """Why the answer ended."""
        return finish_reason(self.stopped)


def finish_reason(stopped: bool) -> str:
    """Return `stop` if a stop token or stop string ended an answer, `length` if its limit did."""
    return "stop" if stopped else "length"


async def collect(plan: Plan) -> list[Collected]:
    """Generate all answers of a plan; raise ApiError if one fails."""
    answers = [Collected() for _ in plan.works]
    async with Generation(plan) as generation:
        async for place, event in generation:
            answer = answers[place]
            if isinstance(event, PromptScored):
                answer.prompt_scores = list(event.tokens)
            elif plan.scores_only:
                continue
            elif isinstance(event, Token):
                answer.scores.append(event)
            elif isinstance(event, Done):
                answer.ids, answer.stopped = event.answer.ids, event.answer.stopped
    return answers


def envelope(kind: Kind, model: LoadedModel) -> dict[str, Any]:
    """Return the fields that every response and every chunk of one stream share.

    `model` is the version that answers, which may differ from the name that the client asked for.
    """
    return {
        "id": f"{_PREFIX[kind]}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.fingerprint,
    }


def usage_of(plan: Plan, new_tokens: int) -> dict[str, int]:
    """Return the numbers of tokens of a request; the tokens of a prompt count once for all its answers."""
    prompt_tokens = sum(map(len, plan.prompts))
    return {
        "prompt_tokens": prompt_tokens, "completion_tokens": new_tokens, "total_tokens": prompt_tokens + new_tokens,
    }  # fmt: skip
