"""A LoRA adapter as a GGUF file, on the file of its base in llama.cpp, gives the log-probabilities of peft."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import tiny
from tests.support.llama_cpp import LlamaCpp, log_probability_limit

from tunesmith.fetch.model_folder import ModelFolder
from tunesmith.gguf.lora import write_lora_gguf
from tunesmith.gguf.write import write_gguf

pytestmark = pytest.mark.slow

_PATTERNS = {
    "r": 8, "lora_alpha": 4, "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 4},
    "alpha_pattern": {"k_proj": 32, "layers.0.mlp.up_proj": 1},
}  # fmt: skip
_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"r": 4, "lora_alpha": 8}),
    "llama, rsLoRA": ("llama", {"r": 4, "lora_alpha": 4, "use_rslora": True}),
    "llama, patterns": ("llama", _PATTERNS),
    "llama, patterns with rsLoRA": ("llama", {**_PATTERNS, "use_rslora": True}),
    "llama, output layer": ("llama", {"r": 4, "target_modules": ["lm_head", "q_proj"]}),
    "qwen3": ("qwen3", {"r": 4, "lora_alpha": 8}),
    "gemma2": ("gemma2", {"r": 4, "lora_alpha": 8}),
    "phi3": ("phi3", {"r": 4, "lora_alpha": 8}),
    "gpt2": ("gpt2", {"r": 4, "fan_in_fan_out": True}),
    "gpt_neox": ("gpt_neox", {"r": 4, "lora_alpha": 8}),
}


@pytest.mark.parametrize("case", _CASES)
def test_log_probabilities_equal(case: str, tmp_path: Path) -> None:
    kind, settings = _CASES[case]
    base = tiny.save_model(tmp_path / "base", kind)
    expected_base, expected = save_adapter(base, tmp_path / "adapter", settings, ids := list(range(20, 60)))
    assert (expected_base - expected).abs().max() > 0.5
    adapter = ModelFolder("adapter", tmp_path / "adapter", base=ModelFolder("base", base))
    write_gguf(base, tmp_path / "base.gguf", type="f32")
    write_lora_gguf(adapter, tmp_path / "adapter.gguf", type="f32")
    with LlamaCpp(tmp_path / "base.gguf", lora=tmp_path / "adapter.gguf") as engine:
        found = engine.next_token(ids)
    scores = torch.tensor([found[token] for token in range(len(expected))])
    assert (scores - expected).abs().max() < log_probability_limit(kind)


def save_adapter(
    base: Path, folder: Path, settings: dict[str, Any], ids: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Save a random adapter, and return the log-probabilities after some ids without and with it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    with tiny.one_thread(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        without = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
        config = LoraConfig(**{"target_modules": "all-linear", **settings})
        adapted = get_peft_model(model, config).eval()
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.3)
        adapted.save_pretrained(folder, save_embedding_layers=False)
        return without, torch.log_softmax(adapted(torch.tensor([ids])).logits[0, -1], -1)
