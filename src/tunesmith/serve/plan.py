"""The work of a request: its prompts, limits and sampling, checked against the model's room."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.core.errors import RecipeError
from tunesmith.inference.adjustment import Adjustment
from tunesmith.inference.request import Limits, StopStrings
from tunesmith.inference.sampling import Sampling, seed_samples
from tunesmith.serve.catalog import LoadedModel
from tunesmith.serve.errors import ApiError, from_tunesmith, invalid
from tunesmith.serve.schema import ChatRequest, CompletionRequest, GenerationRequest
from tunesmith.serve.work import Work

Ids = tuple[int, ...]
_MAX_DIGITS = 10  # of a token id; Python refuses to read numbers with thousands of digits


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of one request: `n` answers to each prompt, those to one prompt consecutively.

    Attributes:
        stop: the stop strings; the text of an answer ends before them.
        prompts: the ids of each prompt.
        works: the answers to generate.
        on_first_token: called once, when the first token of the first answer is there.
        scores_only: whether the client asked for the scores of the prompt and for no answer (`max_tokens: 0`).
    """

    model: LoadedModel
    stop: StopStrings | None
    prompts: Sequence[Ids]
    works: Sequence[Work]
    on_first_token: Callable[[], None]
    scores_only: bool = False


def plan_request(
    request: ChatRequest | CompletionRequest,
    model: LoadedModel,
    prompts: Sequence[Ids],
    *,
    seconds: float,
    on_first_token: Callable[[], None],
) -> Plan:
    """Return the work of a request.

    Args:
        seconds: the time in which all answers must be complete.
        on_first_token: called once, when the first token of the first answer is there.

    Raises:
        ApiError: there are more answers than the server accepts at once, a prompt leaves no room for the answer, or a
            sampling option is out of range.
    """
    if (count := len(prompts) * request.n) > model.worker.max_open:  # with 429, the client would try again forever
        param = "n" if request.n > len(prompts) else "prompt"
        limit = model.worker.max_open
        raise invalid(param, f"asks for {count} answers, but this server accepts {limit} at once", "too_many_answers")
    stop = StopStrings(tuple(request.stop), model.prompts.decode) if request.stop else None
    samplings, adjustment = _samplings(request), _adjustment(request, model)
    echoes = isinstance(request, CompletionRequest) and request.echo
    works = [
        Work(
            model.name,
            prompt,
            Limits(limit, model.prompts.stop_ids, stop),
            sampling,
            adjustment,
            model.prompts.decoder_prefix_ids,
            top_scores=request.top,
            score_prompt=echoes and request.top is not None,
            timeout_s=seconds,
        )
        for prompt in prompts
        for limit in [_limit(request, model, len(prompt))]
        for sampling in samplings
    ]
    return Plan(model, stop, prompts, works, on_first_token, scores_only=request.limit == 0)


def _adjustment(request: GenerationRequest, model: LoadedModel) -> Adjustment:
    """Return the penalties and the bias of a request; raise ApiError if the bias names no token."""
    bias: dict[int, float] = {}
    for name, value in (request.logit_bias or {}).items():
        is_id = name.isascii() and name.isdecimal() and len(name) <= _MAX_DIGITS and str(int(name)) == name
        if not is_id or int(name) >= model.prompts.vocab_size:
            raise invalid("logit_bias", f"{name[:20]!r} is not the id of a token of this model")
        bias[int(name)] = value
    return Adjustment(request.presence_penalty or 0.0, request.frequency_penalty or 0.0, tuple(bias.items()))


def _samplings(request: GenerationRequest) -> list[Sampling]:
    """Return how each of the `n` answers is sampled."""
    penalty = request.repetition_penalty or 1.0
    if not request.temperature:  # greedy, which is the limit of any filter as the temperature falls to 0
        return [Sampling(repetition_penalty=penalty)] * request.n
    top_k = request.top_k if (request.top_k or 0) > 0 else None  # vLLM's clients send -1 or 0 for no limit
    try:
        sampling = Sampling(request.temperature, top_k, request.top_p, request.min_p, penalty, request.seed)
    except RecipeError as error:
        raise from_tunesmith(error) from None
    return seed_samples(sampling, request.n)


def _limit(request: ChatRequest | CompletionRequest, model: LoadedModel, prompt_tokens: int) -> int:
    """Return the limit of an answer in tokens; raise ApiError if prompt and answer do not fit."""
    taken = len(model.prompts.decoder_prefix_ids) or prompt_tokens
    room, wanted = model.max_tokens - taken, request.limit
    if room < 1 or (wanted is not None and wanted > room):
        param = "messages" if isinstance(request, ChatRequest) else "prompt"
        answer = f" and an answer of up to {wanted:,}" if wanted else ""
        message = (
            f"this model has room for {model.max_tokens:,} tokens, but the prompt has {prompt_tokens:,}"
            f"{answer}; shorten the prompt or lower max_tokens"
        )
        raise ApiError(400, message, param=param, reason="context_length_exceeded")
    return max(1, wanted) if wanted is not None else min(model.prompts.default_limit, room)
