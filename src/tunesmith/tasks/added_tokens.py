"""Add the tokens of a recipe's `model.add_tokens` to a tokenizer."""

from collections.abc import Mapping
from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.tasks.tokenizer import TokenizerAdapter


def with_added_tokens(tokenizer: TokenizerAdapter, tokens: Mapping[str, str | None]) -> TokenizerAdapter:
    """Return a tokenizer with more tokens. Text contains them like any other word: they are no control tokens.

    Args:
        tokens: {token: text whose tokens' mean row its row starts as, or None for the mean of all rows}.
    """
    from transformers import AddedToken

    sources = {token: tuple(tokenizer.encode_trusted(text)) if text else () for token, text in tokens.items()}
    hf_tokenizer: Any = tokenizer.hf_tokenizer
    hf_tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    new_rows = {hf_tokenizer.convert_tokens_to_ids(token): ids for token, ids in sources.items()}
    return TokenizerAdapter(
        hf_tokenizer, tokenizer.config, new_rows={**tokenizer.new_rows, **new_rows}, words=(*tokenizer.words, *tokens)
    )


def refuse_known_tokens(tokenizer: TokenizerAdapter, tokens: Mapping[str, str | None]) -> None:
    """Raise RecipeError if the tokenizer has one of these tokens already."""
    known = {token: token_id for token in tokens if (token_id := tokenizer.token_id(token)) is not None}
    if known:
        shown = ", ".join(f"`{token}` (id {token_id})" for token, token_id in list(known.items())[:5])
        message = f"the model has {'these tokens' if len(known) > 1 else 'this token'} already: {shown}"
        hint = "leave out tokens that exist; `method: full` trains their rows"
        raise RecipeError(message, where="model.add_tokens", code="token-exists", hint=hint)
