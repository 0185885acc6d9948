"""A model that sees the tokens it is trained to predict is refused, whatever its configuration states."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from tests.support.opened import KINDS, MORE, Opened
from tests.support.tokens import dataset_of

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import ENCODER_IDS, TokenizedExample
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.kernels.causality_check import require_causal_attention
from tunesmith.model.load import ComputeConfig, load_base

FP32 = ComputeConfig(torch.device("cpu"), torch.float32)
BF16 = ComputeConfig(torch.device("cpu"), torch.bfloat16)
SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
BIDIRECTIONAL: dict[str, dict[str, Any]] = {
    "roberta": SMALL,
    "bert": SMALL,
    "electra": {**SMALL, "embedding_size": 32},
    "xlnet": {"vocab_size": 320, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "gemma3_text": {
        **SMALL, "num_key_value_heads": 1, "head_dim": 16, "use_bidirectional_attention": True, "pad_token_id": 0,
    },
}  # fmt: skip


def rows(source: tuple[int, ...] = ()) -> TokenDataset:
    ids, columns = tuple(range(7, 19)), {ENCODER_IDS: source} if source else {}
    return dataset_of(
        [
            TokenizedExample("a", ids[:5], (False,) * 4 + (True,), columns),
            TokenizedExample("b", ids, (True,) * 12, columns),
        ]
    )


def random_model(kind: str, *, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **BIDIRECTIONAL[kind]), dtype=dtype)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma2", "mixtral", "mamba"])
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_causal_models_pass(opened: Opened, kind: str, compute: ComputeConfig) -> None:
    model = opened(kind, compute.dtype)
    model.train()
    require_causal_attention(model, rows(), 2, compute)
    assert model.training


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in (*KINDS, *MORE) if kind not in ("llama", "gpt2", "mistral")])
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_all_supported_decoders_pass(opened: Opened, kind: str, compute: ComputeConfig) -> None:
    require_causal_attention(opened(kind, compute.dtype), rows(), 2, compute)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_decoder_of_an_encoder_decoder_model_is_checked(opened: Opened, kind: str) -> None:
    model, tokens = opened(kind, torch.float32), rows(source=(9, 8, 7))
    require_causal_attention(model, tokens, 2, FP32)
    with add_mean_of_all_positions(model.get_decoder()), raises(RecipeError, "not-causal"):
        require_causal_attention(model, tokens, 2, FP32)


@contextmanager
def add_mean_of_all_positions(decoder: Any) -> Iterator[None]:
    """Let a layer of the decoder add the mean of all positions, as a wrong mask would."""
    layer = [module for module in decoder.modules() if isinstance(module, torch.nn.Linear)][-1]
    hook = layer.register_forward_hook(lambda *call: call[-1] + call[-1].mean(1, keepdim=True))
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", BIDIRECTIONAL)
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_bidirectional_models_are_refused(kind: str, compute: ComputeConfig) -> None:
    with raises(RecipeError, "not-causal", "seq2seq", where="model.base") as caught:
        require_causal_attention(random_model(kind, dtype=compute.dtype), rows(), 2, compute)
    assert caught.value.exit_code == 2


def test_an_encoder_is_refused_before_its_weights_are_read(tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    random_model("roberta").save_pretrained(tmp_path)
    folder: ModelFolder = resolve(str(tmp_path))
    next(tmp_path.glob("*.safetensors")).write_bytes(b"")
    with raises(RecipeError, "not-causal", "roberta"):
        load_base(folder, FP32)
    load_base(resolve(str(folder_of("llama"))), FP32)
