"""Decide from config.json whether a model is a causal language model. Imports no torch.

A model that sees later tokens reads the tokens that it is trained to predict, so its loss and perplexity are
meaningless. If the configuration does not decide it, `kernels/causality_check.py` tests the model itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.architecture.base_model import language_config
from tunesmith.core.errors import RecipeError

CAUSAL_HINT = "use a decoder, such as a Llama, Qwen or Gemma model; encoder-decoder models need `task: seq2seq`"
# Encoders that transformers also loads as language models. They mask later tokens only with `is_decoder: true`.
_ENCODERS = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
    "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
    "xmod",
})  # fmt: skip
_NOT_CAUSAL_SETTINGS = {
    "use_bidirectional_attention": (True, "all"), "bidirectional": (True,), "prefix_lm": (True,), "is_causal": (False,),
}  # fmt: skip


def require_causal(folder: Path) -> None:
    """Raise RecipeError if a model's configuration shows that tokens attend to later ones."""
    if reason := not_causal_reason(language_config(folder)):
        message = f"is not a causal language model: {reason}"
        raise RecipeError(message, where=str(folder), hint=CAUSAL_HINT, code="not-causal")


def not_causal_reason(config: Mapping[str, Any]) -> str | None:
    """Return the reason why a model is not causal; None if it is, or if the configuration does not decide it."""
    kind = str(config.get("model_type"))
    if kind in _ENCODERS and not config.get("is_decoder"):
        return f"{kind} is an encoder (`is_decoder` is not true), whose tokens attend to later ones"
    if kind == "xlnet" or (kind == "xlm" and not config.get("causal")):
        return f"tokens of {kind} attend to later ones"
    masked = [name for name in config.get("architectures") or () if str(name).endswith("ForMaskedLM")]
    if masked and not config.get("is_decoder") and not config.get("is_encoder_decoder"):
        return f"{masked[0]} predicts masked tokens from both sides"
    attention = config.get("attn_config")
    settings = {**config, **(attention if isinstance(attention, Mapping) else {})}
    found = (name for name, values in _NOT_CAUSAL_SETTINGS.items() if settings.get(name) in values)
    return next((f"its configuration has `{name}: {json.dumps(settings[name])}`" for name in found), None)
