"""A model becomes a codec here and nowhere else: its own tokenizer, and chat markup where a recipe gives it some."""

from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.tasks.tokenizer import TokenizerAdapter

_CHATML = ("<|im_start|>", "<|im_end|>")
_CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def load_tokenizer(model: ModelFolder, chat_markup: str | None = None) -> TokenizerAdapter:
    """Return the codec of a model; an adapter brings the markup along that it was trained with.

    Args:
        chat_markup: the recipe's `model.chat_markup`.

    Raises:
        RecipeError: the model has a chat template already.
    """
    tokenizer = TokenizerAdapter.load(model.root.path)
    if model.chat_markup is not None:
        tokenizer = TokenizerAdapter(
            _with_chatml(tokenizer, model).hf_tokenizer
        )  # whose tokens the adapter has rows for
    return tokenizer if chat_markup is None else _with_chatml(tokenizer, model)


def _with_chatml(tokenizer: TokenizerAdapter, model: ModelFolder) -> TokenizerAdapter:
    """Return the codec with ChatML's two tokens and its template; tokens that are there already are used."""
    if tokenizer.has_chat_template:
        raise RecipeError(
            f"`{model.reference}` has a chat template already", where="model.chat_markup", hint="remove the key"
        )
    from transformers import AddedToken

    plain: Any = tokenizer.hf_tokenizer
    known = len(plain)
    plain.add_tokens([AddedToken(text, special=True, normalized=False) for text in _CHATML], special_tokens=True)
    # What the model expects before every text comes before a conversation, too.
    begins = tokenizer.prefix_ids == (plain.bos_token_id,)
    plain.chat_template = ("{{ bos_token }}" if begins else "") + _CHATML_TEMPLATE
    ids = (plain.convert_tokens_to_ids(text) for text in _CHATML)
    return TokenizerAdapter(plain, tokenizer.config, new_ids=tuple(i for i in ids if i >= known))
