"""Fixtures for tiny models of many architectures, made at the first use and kept for the session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import SEQ2SEQ, save_model, save_seq2seq

from tunesmith.fetch.reference import ModelFolder

KINDS = ("llama", "gpt2", "gpt_neo", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi", "phi3", "granite")

# More architectures: other names on disk than in memory, experts, recurrent layers.
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MORE: dict[str, dict[str, Any]] = {
    "gpt_neox": {**_SMALL, "num_attention_heads": 4},
    "mixtral": {**_SMALL, **_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_SMALL, **_HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
    "gpt_oss": {**_SMALL, **_HEADS, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {
        **_SMALL, **_HEADS, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 1,
        "intermediate_size_mlp": 64, "interleave_moe_layer_step": 1,
    },
    "phimoe": {**_SMALL, **_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "lfm2": {**_SMALL, **_HEADS, "layer_types": ["conv", "full_attention"]},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
}  # fmt: skip

Opened = Callable[..., Any]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a random tiny model of an architecture."""
    folders: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("tiny-models")

    def folder(kind: str) -> Path:
        if kind not in folders:
            save = _saved if kind in MORE else save_seq2seq if kind in SEQ2SEQ else save_model
            folders[kind] = save(root / kind, kind)
        return folders[kind]

    return folder


def _saved(folder: Path, kind: str) -> Path:
    """Write a random model of one of `MORE`, without a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": 320, "pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **common, **MORE[kind]), dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "norm" not in name:
                weight.normal_(0, 0.15)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def opened(folder_of: Callable[[str], Path]) -> Opened:
    """Return a function that loads a tiny model of an architecture with `load_base`."""
    import torch

    from tunesmith.model.load import ComputeConfig, load_base

    def load(kind: str, dtype: Any = None) -> Any:
        compute = ComputeConfig(torch.device("cpu"), dtype or torch.float32)
        return load_base(ModelFolder(kind, folder_of(kind)), compute).eval()

    return load
