"""A GGUF file in llama.cpp gives the log-probabilities that transformers gives for the model's folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import tiny
from tests.support.llama_cpp import LlamaCpp, log_probability_limit

from tunesmith.gguf.architectures import ARCHITECTURES
from tunesmith.gguf.write import write_gguf

pytestmark = pytest.mark.slow

_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
_LONG |= {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 3.0, 5.0, 9.0]}
_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in ARCHITECTURES},
    "llama, all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "llama, one head of keys": ("llama", {"num_key_value_heads": 1}),
    "llama, epsilon": ("llama", {"rms_norm_eps": 0.05}),
    "llama, llama3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama, linear": ("llama", {"rope_parameters": _LINEAR}),
    "llama, yarn": ("llama", {"rope_parameters": _YARN}),
    "llama, yarn, attention factor": ("llama", {"rope_parameters": {**_YARN, "attention_factor": 0.7}}),
    "qwen2, theta": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": _YARN}),
    "qwen3, linear": ("qwen3", {"rope_parameters": _LINEAR}),
    "gemma2, linear": ("gemma2", {"rope_parameters": _LINEAR}),
    "gemma3_text, alternating": (
        "gemma3_text",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {**_LINEAR, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "phi3, short factors": ("phi3", {"rope_parameters": _LONG, "max_position_embeddings": 128}),
    "gpt2, wide": ("gpt2", {"n_inner": 96}),
    "gpt_neox, linear": ("gpt_neox", {"rope_parameters": {**_LINEAR, "partial_rotary_factor": 0.5}}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox, tied": ("gpt_neox", {"tie_word_embeddings": True}),
    "gpt_neox, all dimensions": (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_log_probabilities_equal(case: str, tmp_path: Path) -> None:
    kind, changes = _CASES[case]
    folder = tiny.save_model(tmp_path / "model", kind, **changes)
    write_gguf(folder, tmp_path / "model.gguf", type="f32")
    length = 14 if kind == "mistral" else 48  # llama.cpp has no windows for it, so the file's context is one window
    ids = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(0))
    expected = log_probabilities(folder, ids)
    with LlamaCpp(tmp_path / "model.gguf", context=64) as engine:
        for count in (1, 2, length // 2, length):
            found = engine.next_token(ids[:count].tolist())
            assert len(found) == expected.shape[1]
            scores = torch.tensor([found[token] for token in range(expected.shape[1])])
            assert (scores - expected[count - 1]).abs().max() < log_probability_limit(kind)


def log_probabilities(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities [position, token] of transformers in fp32."""
    from transformers import AutoModelForCausalLM

    with tiny.one_thread(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return torch.log_softmax(model(ids[None]).logits[0], -1)
