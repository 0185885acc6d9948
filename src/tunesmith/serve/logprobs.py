"""Log-probabilities of tokens in the two shapes of OpenAI's API: of chat completions, and of completions."""

from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.inference.request import Token

TokenBytes = Callable[[int], bytes]
# Instead of -inf, which JSON lacks; OpenAI's API has the same value.
_LOWEST = -9999.0


def token_text(content: bytes) -> str:
    """Return the text of a token; one that is not whole characters is `bytes:` and its bytes in hexadecimal."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def chat_logprobs(scores: Sequence[Token], token_bytes: TokenBytes, *, as_ids: bool) -> dict[str, Any]:
    """Return {content: a list of {token, logprob, bytes, top_logprobs}}.

    Args:
        as_ids: write a token as `token_id:5` instead of its text, which several tokens may share.
    """

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        content = token_bytes(token)
        return {"token": _name(token, content, as_ids), "logprob": _finite(logprob), "bytes": list(content)}

    content = [
        {
            **entry(score.id, score.log_probability),
            "top_logprobs": [entry(token, logprob) for token, logprob in score.top],
        }
        for score in scores
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    scores: Sequence[Token], token_bytes: TokenBytes, *, top: int, as_ids: bool, offset: int = 0
) -> dict[str, Any]:
    """Return {tokens, token_logprobs, top_logprobs, text_offset}, lists with an item for each token.

    Args:
        top: the number of most likely tokens that the request asked for.
        as_ids: as in `chat_logprobs`.
        offset: the number of characters before the first token.
    """
    tokens, offsets = [], []
    for score in scores:
        content = token_bytes(score.id)
        tokens.append(_name(score.id, content, as_ids))
        offsets.append(offset)
        offset += len(content.decode(errors="ignore"))
    tops = [_top_names(score, token_bytes, as_ids) if top else None for score in scores]
    return {
        "tokens": tokens,
        "token_logprobs": [
            None if score.log_probability is None else _finite(score.log_probability) for score in scores
        ],
        "top_logprobs": tops if top else None,
        "text_offset": offsets,
    }


def _top_names(score: Token, token_bytes: TokenBytes, as_ids: bool) -> dict[str, float] | None:
    """Return the most likely tokens and the token itself by name; of two with the same name, the likelier."""
    if score.log_probability is None:
        return None
    names: dict[str, float] = {}
    for token, logprob in (*score.top, (score.id, score.log_probability)):
        names.setdefault(_name(token, token_bytes(token), as_ids), _finite(logprob))
    return names


def _name(token: int, content: bytes, as_ids: bool) -> str:
    return f"token_id:{token}" if as_ids else token_text(content)


def _finite(logprob: float | None) -> float:
    return _LOWEST if logprob is None else max(logprob, _LOWEST)
