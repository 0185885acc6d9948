"""Load a model's tokenizer as a TokenizerAdapter, with the tokens that its adapters or the recipe add."""

from tunesmith.fetch.reference import ModelFolder
from tunesmith.recipe.model import Model, tokens_to_add
from tunesmith.tasks.added_tokens import refuse_known_tokens, with_added_tokens
from tunesmith.tasks.chatml import with_chatml
from tunesmith.tasks.tokenizer import TokenizerAdapter


def load_tokenizer(model: ModelFolder, settings: Model | None = None) -> TokenizerAdapter:
    """Load the tokenizer of a model. If the model is an adapter, its tokenizer has the tokens of its training.

    Args:
        settings: the recipe's `model`, whose ChatML and tokens are added; None to use the model as it is.

    Raises:
        RecipeError: the model already has a chat template, or one of the tokens.
    """
    tokenizer = _as_trained(model)
    if settings is not None and settings.chat_markup is not None:
        tokenizer = with_chatml(tokenizer, model.reference)
    if settings is not None and (tokens := tokens_to_add(settings)):
        refuse_known_tokens(tokenizer, tokens)
        tokenizer = with_added_tokens(tokenizer, tokens)
    return tokenizer


def _as_trained(model: ModelFolder) -> TokenizerAdapter:
    """Return the tokenizer that a model was trained with; ids follow from the order in which its adapters added them.

    It has no `new_rows`, because the adapters have these embedding rows.
    """
    if model.base is None:
        return TokenizerAdapter.load(model.path, words=model.added_tokens)
    below = tokenizer = _as_trained(model.base)
    if model.card.get("chat_markup"):
        tokenizer = with_chatml(tokenizer, model.reference)
    if missing := [token for token in model.added_tokens if tokenizer.token_id(token) is None]:
        tokenizer = with_added_tokens(tokenizer, dict.fromkeys(missing))
    if tokenizer is below:
        return tokenizer
    return TokenizerAdapter(tokenizer.hf_tokenizer, tokenizer.config, words=tokenizer.words)
