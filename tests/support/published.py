"""The config.json of published models, with the number of parameters on their pages."""

from typing import Any


def _gpt_neo(*, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neo", "hidden_size": hidden, "num_layers": layers, "num_heads": heads, "vocab_size": 50257,
        "max_position_embeddings": 2048, "window_size": 256,
        "attention_types": [[["global", "local"], layers // 2]],
    }  # fmt: skip


PUBLISHED: dict[str, tuple[dict[str, Any], float]] = {
    "mistralai/Mistral-7B-v0.1": (
        {
            "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096,
            "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
        },
        7.24e9,
    ),
    "google/gemma-7b": (
        {
            "model_type": "gemma", "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256000,
            "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
        },
        8.54e9,
    ),
    "google/flan-t5-base": (
        {
            "model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12,
            "num_heads": 12, "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
            "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "is_encoder_decoder": True,
        },
        248e6,
    ),
    "EleutherAI/gpt-neo-125m": (_gpt_neo(hidden=768, layers=12, heads=12), 125e6),
    "EleutherAI/gpt-neo-1.3B": (_gpt_neo(hidden=2048, layers=24, heads=16), 1.316e9),
    "EleutherAI/gpt-neo-2.7B": (_gpt_neo(hidden=2560, layers=32, heads=20), 2.65e9),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (
        {
            "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
            "num_attention_heads": 15, "num_key_value_heads": 5, "vocab_size": 49152, "tie_word_embeddings": True,
            "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
        },
        362e6,
    ),
}  # fmt: skip
