"""A model that sees the tokens it is asked to predict is refused, whatever its configuration says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.opened import KINDS, MORE, Opened

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
SEES_RIGHT: dict[str, dict[str, Any]] = {
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
    return TokenDataset.from_examples(
        [
            TokenizedExample("a", ids[:5], (False,) * 4 + (True,), columns),
            TokenizedExample("b", ids, (True,) * 12, columns),
        ]
    )


def random_model(kind: str, *, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SEES_RIGHT[kind]), dtype=dtype)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma2", "mixtral", "mamba"])
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_causal_models_pass(opened: Opened, kind: str, compute: ComputeConfig) -> None:
    model = opened(kind, compute.dtype)
    model.train()
    require_causal_attention(model, rows(), 2, compute)
    assert model.training  # left as it was


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in (*KINDS, *MORE) if kind not in ("llama", "gpt2", "mistral")])
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_every_kind_of_decoder_passes(opened: Opened, kind: str, compute: ComputeConfig) -> None:
    require_causal_attention(opened(kind, compute.dtype), rows(), 2, compute)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_of_an_encoder_and_a_decoder_the_decoder_is_tried(opened: Opened, kind: str) -> None:
    model, tokens = opened(kind, torch.float32), rows(source=(9, 8, 7))
    require_causal_attention(model, tokens, 2, FP32)
    with sees_everything(model.get_decoder()), pytest.raises(RecipeError, match="not a causal"):
        require_causal_attention(model, tokens, 2, FP32)


class sees_everything:
    """Let a decoder's layers add the mean of all positions, as a wrong mask would."""

    def __init__(self, decoder: Any) -> None:
        self._layer = [part for part in decoder.modules() if isinstance(part, torch.nn.Linear)][-1]

    def __enter__(self) -> None:
        self._hook = self._layer.register_forward_hook(lambda *call: call[-1] + call[-1].mean(1, keepdim=True))

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize("kind", SEES_RIGHT)
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_models_that_see_later_tokens_are_refused(kind: str, compute: ComputeConfig) -> None:
    with pytest.raises(RecipeError, match="not a causal") as caught:
        require_causal_attention(random_model(kind, dtype=compute.dtype), rows(), 2, compute)
    assert (caught.value.exit_code, caught.value.where) == (2, "model.base")
    assert "seq2seq" in str(caught.value.hint)


def test_an_encoder_is_refused_before_its_weights_are_read(tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    random_model("roberta").save_pretrained(tmp_path)
    folder: ModelFolder = resolve(str(tmp_path))
    next(tmp_path.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(RecipeError, match="roberta is an encoder"):
        load_base(folder, FP32)
    load_base(resolve(str(folder_of("llama"))), FP32)
