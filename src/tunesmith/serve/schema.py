"""The requests that the server accepts. A field that it does not know, or cannot honour, is an error.

Fields and limits are those of OpenAI's API, and some of vLLM's: `top_k`, `min_p`, `repetition_penalty`,
`return_token_ids`, `return_tokens_as_token_ids`, and the requests of /tokenize and /detokenize.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from tunesmith.serve.errors import ApiError, invalid

MAX_CHOICES, MAX_TOP_LOGPROBS = 16, 20
_MAX_STOPS, _MAX_STOP_CHARACTERS, _MAX_PROMPTS = 16, 256, 256
_MAX_MESSAGES, _MAX_BIASES = 4096, 1024
_MAX_SEED, _MAX_ID = 2**63 - 1, 2**31
_Model = TypeVar("_Model", bound="_Request")
# Fields of OpenAI's and vLLM's APIs that this server cannot honour, with the values that ask for nothing. Other values
# are refused by name.
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "function_call": ("none",), "functions": ([],), "guided_json": (), "metadata": ({},),
    "modalities": (["text"],), "parallel_tool_calls": (True, False), "prediction": (), "reasoning_effort": (),
    "response_format": ({"type": "text"},), "service_tier": ("auto", "default"), "store": (False,), "suffix": ("",),
    "tool_choice": ("none", "auto"), "tools": ([],), "verbosity": (), "web_search_options": (),
}  # fmt: skip
# Keys with which clients send back an answer of this server as it was, and the values that hold nothing.
_EMPTY_MESSAGE_KEYS: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],), "audio": (), "function_call": (), "name": (), "refusal": (), "tool_calls": ([],),
}  # fmt: skip


def _as_list(value: Any) -> Any:
    """Return a text as a list of one, and null as an empty list."""
    return [] if value is None else [value] if isinstance(value, str) else value


def _joined_text(value: Any) -> Any:
    """Return the text of a list of text parts; images and other parts are refused."""
    if not isinstance(value, list):
        return value
    for number, part in enumerate(value):
        if not (isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"):
            raise ValueError(f"part {number} is not {{type: text, text}}; this server reads text only")
        if not isinstance(part["text"], str):
            raise ValueError(f"the text of part {number} is not text")
    return "".join(part["text"] for part in value)


def _as_prompts(value: Any) -> Any:
    """Return the prompts as a list of texts and lists of ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and all(map(_is_id, value))):
        return [value]
    is_prompts = isinstance(value, list) and all(
        isinstance(prompt, str) or (isinstance(prompt, list) and all(map(_is_id, prompt))) for prompt in value
    )
    if not is_prompts:
        raise ValueError("is not a text, a list of texts, a list of token ids or a list of lists of token ids")
    return value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_ID


_StopText = Annotated[str, StringConstraints(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
_Stops = Annotated[list[_StopText], BeforeValidator(_as_list), Field(max_length=_MAX_STOPS)]
_Prompts = Annotated[list[str | list[int]], BeforeValidator(_as_prompts), Field(min_length=1, max_length=_MAX_PROMPTS)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Request(_Strict):
    """Fields of every request."""

    model: str

    @classmethod
    def parse(cls: type[_Model], body: Mapping[str, Any]) -> _Model:
        """Return the request in a JSON object.

        Raises:
            ApiError: a field is unknown, missing, wrong or not supported; `param` names it.
        """
        kept = {name: value for name, value in body.items() if not _is_default(name, value, _DEFAULTS)}
        unsupported = next((name for name in kept if name in _DEFAULTS and name not in cls.model_fields), None)
        if unsupported is not None:
            raise invalid(unsupported, "this server does not support it", "unsupported_parameter")
        try:
            return cls.model_validate(kept)
        except ValidationError as error:
            raise _api_error(error) from None


def _is_default(name: str, value: Any, defaults: Mapping[str, tuple[Any, ...]]) -> bool:
    """Return whether a field that cannot be honoured asks for nothing."""
    if name not in defaults:
        return False
    return value is None or any(type(value) is type(default) and value == default for default in defaults[name])


def _api_error(error: ValidationError) -> ApiError:
    """Return the error for the first mistake in a request."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else part
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return invalid(param, "there is no such field, or this server does not support it", "unknown_parameter")
    return invalid(param or None, message, "missing_parameter" if first["type"] == "missing" else "invalid_value")


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined_text)]

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if not _is_default(name, item, _EMPTY_MESSAGE_KEYS)}


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool = False


class GenerationRequest(_Request):
    """Fields of chat completions and completions.

    `temperature` is 0 (greedy) by default, as in the evaluation that the verdict was computed from; OpenAI's is 1.
    """

    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(default=None, ge=0)
    stop: _Stops = []
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: _Share | None = None
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=_MAX_BIASES)
    seed: int | None = Field(default=None, ge=0, le=_MAX_SEED)
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    user: str | None = None  # names the client's own user; it never changes an answer and is not stored

    @property
    def has_scores(self) -> bool:
        """Whether the request asks for log-probabilities."""
        return bool(getattr(self, "logprobs", None) not in (None, False))

    @property
    def has_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _check_effects(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise _field_error("stream_options", "has no effect without `stream`")
        if self.return_tokens_as_token_ids and not self.has_scores:
            raise _field_error("return_tokens_as_token_ids", "has no effect without `logprobs`")
        if self.temperature is None:
            options = {"top_p": self.top_p not in (None, 1), "top_k": (self.top_k or 0) > 0, "min_p": bool(self.min_p)}
            options["n"] = self.n > 1
            for name in (name for name, is_set in options.items() if is_set):
                raise _field_error(name, "has no effect without `temperature`, whose default here is 0 (greedy)")
        return self


def _field_error(name: str, message: str, *further: str | int) -> ValidationError:
    """Return an error at one field or a part of it, as pydantic raises for its own checks."""
    detail = {"type": "value_error", "loc": (name, *further), "input": None, "ctx": {"error": message}}
    return ValidationError.from_exception_data("request", [detail])  # type: ignore[list-item]


class ChatRequest(GenerationRequest):
    """A chat completion. Either `messages` or `row` has the prompt."""

    messages: list[Message] = Field(default=[], max_length=_MAX_MESSAGES)
    row: dict[str, Any] | None = None  # values for the columns of the recipe's prompt and system turn
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatRequest":
        if bool(self.messages) == (self.row is not None):
            problem = "must be empty if there is a `row`" if self.messages else "has no message"
            raise _field_error("messages", problem)
        if self.messages and self.messages[-1].role != "user":
            raise _field_error("messages", "the last message must be the user's; the model answers it")
        for place, message in enumerate(self.messages):
            if message.role == "user" and not message.content.strip():
                raise _field_error("messages", "has no text", place, "content")
        if self.top_logprobs is not None and not self.logprobs:
            raise _field_error("top_logprobs", "has no effect without `logprobs`")
        if self.max_tokens == 0:
            raise _field_error("max_tokens", "must be 1 or more")
        if None not in (limits := (self.max_tokens, self.max_completion_tokens)) and len(set(limits)) > 1:
            raise _field_error("max_tokens", "differs from `max_completion_tokens`; send one of them")
        return self

    @property
    def limit(self) -> int | None:
        """The limit of the answer in tokens, if the request has one."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def top(self) -> int | None:
        """The number of most likely tokens to report for each token; None for no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """A completion of texts or token ids. With `echo`, the answer begins with the prompt."""

    prompt: _Prompts
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise _field_error("max_tokens", "0 needs `echo`; without it there is nothing to answer")
        if self.echo and self.stream:
            raise _field_error("echo", "cannot be streamed")
        if len(self.prompt) * self.n > _MAX_PROMPTS:
            raise _field_error("prompt", f"prompts times `n` is more than {_MAX_PROMPTS}")
        return self

    @property
    def limit(self) -> int | None:
        """The limit of the answer in tokens, if the request has one."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """The number of most likely tokens to report for each token; None for no log-probabilities at all."""
        return self.logprobs


class TokenizeRequest(_Request):
    """The ids of a text, or of the prompt of messages."""

    prompt: str | None = None
    messages: list[Message] = Field(default=[], max_length=_MAX_MESSAGES)
    row: dict[str, Any] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: Literal[True] = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check_source(self) -> "TokenizeRequest":
        given = sum([self.prompt is not None, bool(self.messages), self.row is not None])
        if given != 1:
            raise _field_error("prompt", "send exactly one of `prompt`, `messages` and `row`")
        return self


class DetokenizeRequest(_Request):
    """The text of ids."""

    tokens: list[int]


def texts_of(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Return (role, text) of each message."""
    return [(message.role, message.content) for message in messages]
