"""config.json -> whether a model is a causal language model, by its configuration. Imports no torch.

A model that sees later tokens reads the answer that it is asked to predict: its loss and perplexity mean nothing. If
the configuration leaves it open, `kernels/causality_check.py` tests the model itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.architecture.base_model import language_config
from tunesmith.core.errors import RecipeError

CAUSAL_HINT = (
    "choose a decoder, such as a model of the GPT, Llama, Qwen or Gemma families; models with an encoder and a decoder "
    "(T5, BART) go with `task: seq2seq`"
)
# Encoders that transformers opens as language models too; only `is_decoder: true` masks what is to the right.
_ENCODERS = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
    "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
    "xmod",
})  # fmt: skip


def require_causal(folder: Path) -> None:
    """Raise RecipeError if a model's configuration says that its tokens see later ones."""
    if reason := not_causal_reason(language_config(folder)):
        raise RecipeError(
            f"is not a causal language model: {reason}", where=str(folder), hint=CAUSAL_HINT, code="not-causal"
        )


def not_causal_reason(config: Mapping[str, Any]) -> str | None:
    """Return why a configuration is not that of a causal model; None if it is, or if that is left open."""
    kind = str(config.get("model_type"))
    if kind in _ENCODERS and not config.get("is_decoder"):
        return f"{kind} is an encoder (`is_decoder` is not true), whose tokens see those after them"
    if kind == "xlnet" or (kind == "xlm" and not config.get("causal")):
        return f"the tokens of {kind} see those after them"
    masked = [name for name in config.get("architectures") or () if str(name).endswith("ForMaskedLM")]
    if masked and not config.get("is_decoder") and not config.get("is_encoder_decoder"):
        return f"{masked[0]} fills gaps in a text and sees both sides of them"
    attention = config.get("attn_config")
    settings = {**config, **(attention if isinstance(attention, Mapping) else {})}
    for name, sees in (
        ("use_bidirectional_attention", (True, "all")),
        ("bidirectional", (True,)),
        ("prefix_lm", (True,)),
        ("is_causal", (False,)),
    ):
        if settings.get(name) in sees:
            return f"its configuration says `{name}: {json.dumps(settings[name])}`"
    return None
