"""Load a model's tokenizer as a TokenizerAdapter, with ChatML if the recipe or the adapter adds it."""

from typing import Any

from tunesmith.core.errors import RecipeError
from tunesmith.fetch.reference import ModelFolder
from tunesmith.tasks.tokenizer import TokenizerAdapter

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML_TEMPLATE = (
    "{% if tools %}"
    "{{ '<|im_start|>system\\nYou can call these tools:\\n<tools>\\n' + (tools | tojson) + '\\n</tools>\\n"
    'Write each call as <tool_call>{"name": ..., "arguments": {...}}</tool_call>.<|im_end|>\\n\' }}'
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] %}"
    "{{ '<tool_call>' + (call['function'] | tojson) + '</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def load_tokenizer(model: ModelFolder, chat_markup: str | None = None) -> TokenizerAdapter:
    """Load the tokenizer of a model. If the model is an adapter trained with ChatML, its tokenizer has ChatML too.

    Args:
        chat_markup: the recipe's `model.chat_markup`.

    Raises:
        RecipeError: the model already has a chat template.
    """
    tokenizer = TokenizerAdapter.load(model.root.path)
    if model.chat_markup is not None:
        # No new_ids: the adapter has embedding rows for these tokens.
        tokenizer = TokenizerAdapter(_with_chatml(tokenizer, model).hf_tokenizer)
    return tokenizer if chat_markup is None else _with_chatml(tokenizer, model)


def _with_chatml(tokenizer: TokenizerAdapter, model: ModelFolder) -> TokenizerAdapter:
    """Add ChatML's template, and those of its two tokens that the tokenizer lacks."""
    if tokenizer.has_chat_template:
        message = f"`{model.reference}` already has a chat template"
        raise RecipeError(message, where="model.chat_markup", code="has-chat-template", hint="remove the key")
    from transformers import AddedToken

    hf_tokenizer: Any = tokenizer.hf_tokenizer
    old_size = len(hf_tokenizer)
    added = [AddedToken(text, special=True, normalized=False) for text in CHATML_TOKENS]
    hf_tokenizer.add_tokens(added, special_tokens=True)
    # If the model expects [bos] before every text, it expects it before a conversation, too.
    has_bos = tokenizer.prefix_ids == (hf_tokenizer.bos_token_id,)
    hf_tokenizer.chat_template = ("{{ bos_token }}" if has_bos else "") + CHATML_TEMPLATE
    ids = (hf_tokenizer.convert_tokens_to_ids(text) for text in CHATML_TOKENS)
    return TokenizerAdapter(hf_tokenizer, tokenizer.config, new_ids=tuple(i for i in ids if i >= old_size))
