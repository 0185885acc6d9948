"""The estimated memory of the tensors saved for backward equals what torch's graph holds."""

import contextlib
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.support.tiny import config, seq2seq_config
from torch.autograd.graph import saved_tensors_hooks

from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.shapes import Shapes
from tunesmith.core.records import ENCODER_IDS
from tunesmith.data.token_dataset import ENCODER_MASK, Batch
from tunesmith.estimate.activations import MicroBatchShape
from tunesmith.estimate.memory import estimate_memory
from tunesmith.kernels.gated_mlp import patch_gated_mlp
from tunesmith.kernels.lora_fused import fuse_lora, record_shared_inputs
from tunesmith.kernels.packed_attention import use_packed_attention
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.trainable import make_trainable
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import FullTuning

ROWS, LENGTH, SOURCE, VOCABULARY = 3, 64, 96, 2048
DECODERS = ("llama", "gpt2", "gpt_neo", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi", "phi3", "granite")
LORA = {"method": "lora", "rank": 4}
TUNINGS = [LORA, {**LORA, "dropout": 0.1}, {"method": "full"}]
# The allowed relative error; benchmarks/memory.py holds whole runs to a smaller one.
TOLERANCE = 0.15
Packed = Literal["masked", "by row"] | None


@pytest.fixture(autouse=True)
def _unchunked_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training frees the graph of each chunk of the loss, but the count here would keep them all."""
    monkeypatch.setattr("tunesmith.kernels.token_loss.LOGITS_CHUNK", 10**9)


def decoder(kind: str) -> Any:
    """Return a configuration whose layers dominate the memory."""
    made = config(kind)
    made.vocab_size = VOCABULARY
    if kind == "gpt2":
        made.n_embd, made.n_layer = 64, 4
    elif kind == "gpt_neo":
        made.hidden_size, made.num_layers = 64, 4
        made.attention_types, made.attention_layers = [[["global", "local"], 2]], ["global", "local"] * 2
    else:
        made.hidden_size, made.intermediate_size, made.num_hidden_layers = 64, 176, 4
        if hasattr(made, "head_dim"):
            made.head_dim = 24
        if getattr(made, "layer_types", None):
            made.layer_types = (made.layer_types * 2)[:4]
    return made


def with_encoder(kind: str, dropout: float) -> Any:
    if kind == "bart":
        sizes = {"d_model": 64, "encoder_ffn_dim": 176, "decoder_ffn_dim": 176, "dropout": dropout}
        return seq2seq_config(kind, vocab_size=VOCABULARY, encoder_layers=4, decoder_layers=4, **sizes)
    sizes = {"d_model": 64, "d_kv": 24, "d_ff": 176, "num_layers": 4, "dropout_rate": dropout}
    return seq2seq_config(kind, vocab_size=VOCABULARY, **sizes)


def recipe(task: str, tuning: dict[str, Any]) -> Recipe:
    columns = {"text": "t"} if task == "text" else {"prompt": "{q}", "response": "{a}"}
    return Recipe.model_validate({
        "name": "x", "model": {"base": "org/model"},
        "data": {"task": task, "source": {"file": "x.csv"}, **columns},
        "tuning": tuning, "train": {"learning_rate": 1e-4},
        "evaluate": {"metrics": ["perplexity"], "primary": "perplexity"},
    })  # fmt: skip


def batch(*, packed: bool, source: bool) -> Batch:
    """Return a batch in which every token but the first of a row is trained."""
    ids = torch.randint(3, 300, (ROWS, LENGTH))
    trained = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    trained[:, 0] = False
    extra: dict[str, Any] = {}
    if source:
        mask = torch.ones(ROWS, SOURCE, dtype=torch.long)
        mask[0, SOURCE // 2 :] = 0
        extra = {"columns": {ENCODER_IDS: torch.randint(3, 300, (ROWS, SOURCE)), ENCODER_MASK: mask}}
    if packed:
        owner = torch.arange(ROWS).repeat_interleave(LENGTH)[None]
        ids, trained = ids.reshape(1, -1), trained.reshape(1, -1)
        extra = {"positions": torch.arange(LENGTH).repeat(ROWS)[None]}
        extra["segment_lengths"] = (0, *[LENGTH] * ROWS, 0)
        return Batch(ids, trained, owner, ids.numel(), **extra)
    return Batch(ids, trained, torch.zeros_like(ids), ids.numel(), **extra)


def saved_by_torch(model: Any, read: Batch, autocast: Any) -> int:
    """Return the bytes that the graph of a forward pass holds, without the model itself."""
    own = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    held: dict[int, int] = {}
    alive = []  # keeps tensors alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with autocast, saved_tensors_hooks(pack, lambda tensor: tensor):
        token_loss(model, read).nll.sum()
    return sum(held.values())


def estimated_over_saved(
    shape: Any, asked: Recipe, dtype: torch.dtype, folder: Path, *, packed: Packed = None
) -> float:
    """Return the estimated bytes divided by those that torch saves."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    has_encoder, full = shape.is_encoder_decoder, isinstance(asked.tuning, FullTuning)
    shape.save_pretrained(folder)
    kind = AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM
    eager = {"attn_implementation": "eager"} if shape.model_type == "gemma2" else {}
    model = kind.from_config(shape, dtype=torch.float32 if full else dtype, **eager)
    model = make_trainable(model, asked.tuning, seed=0).train()
    patch_gated_mlp(model)
    if not full:
        with record_shared_inputs(model) as groups, torch.no_grad():
            token_loss(model, batch(packed=False, source=has_encoder))
        fuse_lora(groups)
    if packed == "by row":
        use_packed_attention(model)
    low = dtype != torch.float32
    autocast = torch.autocast("cpu", dtype=dtype) if full and low else contextlib.nullcontext()
    torch.manual_seed(0)
    saved = saved_by_torch(model, batch(packed=bool(packed), source=has_encoder), autocast)
    shapes: Shapes = shapes_of(folder)
    trained = ROWS * LENGTH - (1 if packed else ROWS)
    width = ROWS * LENGTH if packed == "masked" else LENGTH
    layout = {"masked": packed == "masked", "by_row": packed == "by row"}
    size = MicroBatchShape(
        ROWS * LENGTH,
        width,
        trained,
        source_tokens=ROWS * SOURCE * has_encoder,
        source_width=SOURCE * has_encoder,
        **layout,
    )
    estimate = estimate_memory(asked, shapes, size, compute_bytes=dtype.itemsize, on_gpu=True)
    estimated = (
        estimate.activations * 2**30 + trained * VOCABULARY * 4
    )  # plus the probabilities; the rest of the loss is allocated later
    if low:  # copies of trained weights, which the graph holds and the estimate counts as weights
        estimated += shapes.parameters * 2 if full else estimate.trainable_parameters * 4
    return estimated / saved


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tuning", TUNINGS, ids=["lora", "dropout", "full"])
@pytest.mark.parametrize("kind", DECODERS)
def test_saved_tensors_of_decoders(tmp_path: Path, kind: str, tuning: dict[str, Any], dtype: torch.dtype) -> None:
    assert estimated_over_saved(decoder(kind), recipe("text", tuning), dtype, tmp_path) == pytest.approx(
        1, abs=TOLERANCE
    )


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("kind", ["t5", "flan-t5", "bart"])
def test_saved_tensors_of_encoder_decoder_models(tmp_path: Path, kind: str, tuning: str, dropout: float) -> None:
    target = ["q_proj", "v_proj"] if kind == "bart" else ["q", "v"]
    asked = recipe("seq2seq", {"method": "full"} if tuning == "full" else {**LORA, "target": target})
    ratio = estimated_over_saved(with_encoder(kind, dropout), asked, torch.float32, tmp_path)
    assert ratio == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "tuning",
    [{**LORA, "dora": True}, {**LORA, "target": ["q_proj", "v_proj"]}, {**LORA, "target": ["v_proj", "down_proj"]}],
)
def test_saved_tensors_of_dora_and_of_some_target_layers(
    tmp_path: Path, tuning: dict[str, Any], dtype: torch.dtype
) -> None:
    assert estimated_over_saved(decoder("llama"), recipe("text", tuning), dtype, tmp_path) == pytest.approx(
        1, abs=TOLERANCE
    )


@pytest.mark.parametrize("packed", ["masked", "by row"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_saved_tensors_of_packed_rows(tmp_path: Path, kind: str, packed: Packed) -> None:
    ratio = estimated_over_saved(decoder(kind), recipe("text", LORA), torch.float32, tmp_path, packed=packed)
    assert ratio == pytest.approx(1, abs=TOLERANCE)
