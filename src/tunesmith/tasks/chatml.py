"""ChatML for a model without a chat template (`model.chat_markup`): its template and its two tokens."""

from typing import Any

from tunesmith.core.errors import RecipeError
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


def with_chatml(tokenizer: TokenizerAdapter, reference: str) -> TokenizerAdapter:
    """Return a tokenizer with ChatML's template, and with those of its two tokens that the tokenizer lacks.

    Args:
        reference: the name of the model, for the error.

    Raises:
        RecipeError: the model already has a chat template.
    """
    if tokenizer.has_chat_template:
        message = f"`{reference}` already has a chat template"
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
    new_rows = {token_id: () for token_id in ids if token_id >= old_size}
    return TokenizerAdapter(hf_tokenizer, tokenizer.config, new_rows=new_rows, words=tokenizer.words)
