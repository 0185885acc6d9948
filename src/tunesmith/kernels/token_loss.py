"""The token loss: the negative log-likelihood of the trained tokens, the only ones that reach the output layer.

In most tasks a tenth of the tokens is trained, and the logits [positions, vocabulary] dominate memory. The hidden
states are selected just before the output layer, so the model's own code still post-processes its logits
(soft-capping, scaling). If many tokens are trained, they pass through the output layer in chunks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tunesmith.core.records import ENCODER_IDS
from tunesmith.data.token_dataset import ENCODER_MASK, Batch
from tunesmith.estimate.memory import LOGITS_CHUNK
from tunesmith.kernels.packed_attention import has_packed_attention
from tunesmith.kernels.temporary import replace_forward
from tunesmith.model.load import without_adapter


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The token losses of a batch.

    Attributes:
        nll: the negative log-likelihood in nats [trained tokens].
        correct: whether the token has the highest logit [trained tokens].
        rows: the index of the token's sequence in the batch [trained tokens].
        columns: the batch's columns by name, with a value per trained token or per sequence.
        examples: the index of each sequence's example in the batch [sequences].
    """

    nll: Tensor
    correct: Tensor
    rows: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    examples: Tensor | None = None

    def by_sequence(self, values: Tensor) -> Tensor:
        """Return the sum of values [trained tokens] over each sequence of the batch [sequences]."""
        assert self.examples is not None
        # Not `index_add`, whose order of additions on a GPU is not deterministic.
        sequences = torch.arange(len(self.examples), device=values.device)
        return torch.where(self.rows == sequences[:, None], values, 0).sum(1)


def token_loss(model: Any, batch: Batch) -> TokenLoss:
    """Return the negative log-likelihood of every trained token.

    Args:
        model: a causal or an encoder-decoder language model, with or without a peft adapter.
        batch: `loss_mask` marks the tokens to predict, each from the position before it. The first of `input_ids` is
            the decoder's start token, so encoder-decoder models need no other shift.
    """
    predicted = batch.loss_mask[:, 1:]
    targets = batch.input_ids[:, 1:][predicted]
    decoder = _decoder(model) if len(targets) > LOGITS_CHUNK else None
    if decoder is not None:
        nll, correct = _chunked_loss(model, decoder, batch, predicted, targets)
    else:
        nll, correct = _cross_entropy(_logits_at(model, batch, predicted), targets)
    columns = {
        column.name: values[:, 1:][predicted] if column.per == "token" else values
        for column, values in batch.columns.items()
        if column.per != "ids"
    }
    return TokenLoss(nll, correct, batch.segment_ids[:, 1:][predicted], columns, batch.examples)


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return nll and correctness [tokens] for logits [tokens, vocabulary]."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nll = functional.cross_entropy(logits, targets, reduction="none")
    return nll, logits.detach().argmax(-1) == targets


def _logits_at(model: Any, batch: Batch, positions: Tensor) -> Tensor:
    """Return logits [selected, vocabulary] at the positions of a mask [sequences, length - 1]."""
    output_layer = model.get_output_embeddings()

    def select(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:, :-1][positions].unsqueeze(0), *args[1:])

    with output_layer.register_forward_pre_hook(select):
        logits: Tensor = model(**model_inputs(model, batch), use_cache=False).logits
    return logits.squeeze(0)


def _decoder(model: Any) -> Any:
    """Return the submodule that computes the hidden states for the model's forward; None if there is no such module."""
    language_model = without_adapter(model)
    decoder = None if model.config.is_encoder_decoder else language_model.get_decoder()
    return decoder if decoder is getattr(language_model, language_model.base_model_prefix, None) else None


def _chunked_loss(model: Any, decoder: Any, batch: Batch, positions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return nll and correctness [tokens] without ever holding the logits of all tokens."""
    language_model, output = without_adapter(model), decoder(**model_inputs(model, batch), use_cache=False)
    hidden = output.last_hidden_state[:, :-1][positions]

    def chunk_loss(states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # Call the model's own forward with a decoder that returns these states, so that its code computes the logits.
        def return_states(*args: Any, **kwargs: Any) -> Any:
            return type(output)(**{**output, "last_hidden_state": states.unsqueeze(0)})

        undo = replace_forward(decoder, return_states)
        try:
            logits = language_model(input_ids=batch.input_ids[:1, :1], use_cache=False).logits
        finally:
            undo()
        return _cross_entropy(logits.squeeze(0), labels)

    if not torch.is_grad_enabled():
        pairs = zip(torch.split(hidden, LOGITS_CHUNK), torch.split(targets, LOGITS_CHUNK), strict=True)
        nll, correct = zip(*(chunk_loss(states, labels) for states, labels in pairs), strict=True)
        return torch.cat(nll), torch.cat(correct)
    weights = [weight for weight in model.get_output_embeddings().parameters() if weight.requires_grad]
    loss: tuple[Tensor, Tensor] = _ChunkedLoss.apply(hidden, targets, chunk_loss, *weights)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """The loss of hidden states [tokens, hidden], chunk by chunk; gradients are computed while the logits exist.

    A token's loss depends on its own hidden state alone, so its gradient is saved for a weight of 1 and multiplied by
    the token's actual weight in backward. The gradients of the output layer's weights are sums over tokens: they are
    saved for equal weights of all tokens, and recomputed from the hidden states if the weights differ.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, chunk_loss: Any, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return nll and correctness [tokens]."""
        nll, correct, d_hidden = [], [], torch.empty_like(hidden)
        d_weights: list[Tensor] = []
        for start in range(0, len(targets), LOGITS_CHUNK):
            chunk = slice(start, start + LOGITS_CHUNK)
            states = hidden[chunk].detach().requires_grad_()
            with torch.enable_grad():
                loss, is_correct = chunk_loss(states, targets[chunk])
                d_hidden[chunk], *d_chunk = torch.autograd.grad(loss.sum(), [states, *weights])
            d_weights = _added(d_weights, d_chunk)
            nll.append(loss.detach())
            correct.append(is_correct)
        ctx.save_for_backward(d_hidden, *d_weights, *weights, *((hidden, targets) if weights else ()))
        device = hidden.device.type
        ctx.chunk_loss, ctx.count = chunk_loss, len(weights)
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        all_correct = torch.cat(correct)
        ctx.mark_non_differentiable(all_correct)
        return torch.cat(nll), all_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return the gradients of hidden states and weights."""
        d_hidden, *saved = ctx.saved_tensors
        d_weights, weights, rest = saved[: ctx.count], saved[ctx.count : 2 * ctx.count], saved[2 * ctx.count :]
        d_nll = gradients[0]
        if weights:
            equal = bool(torch.all(d_nll == d_nll[0]))
            d_weights = [d * d_nll[0] for d in d_weights] if equal else _weight_gradients(ctx, d_nll, weights, *rest)
        return d_hidden * d_nll.unsqueeze(1).to(d_hidden.dtype), None, None, *d_weights


def _weight_gradients(ctx: Any, d_nll: Tensor, weights: list[Tensor], hidden: Tensor, targets: Tensor) -> list[Tensor]:
    """Return the gradients of the output layer's weights for tokens with different weights `d_nll` [tokens]."""
    device, dtype, enabled = ctx.autocast
    totals: list[Tensor] = []
    for start in range(0, len(targets), LOGITS_CHUNK):
        chunk = slice(start, start + LOGITS_CHUNK)
        with torch.enable_grad(), torch.autocast(device, dtype, enabled=enabled):
            loss, _ = ctx.chunk_loss(hidden[chunk].detach(), targets[chunk])
            totals = _added(totals, torch.autograd.grad(loss, weights, d_nll[chunk]))
    return totals


def _added(totals: list[Tensor], new: Iterable[Tensor]) -> list[Tensor]:
    """Add tensors to totals in place; without totals, return the tensors."""
    return [total.add_(tensor) for total, tensor in zip(totals, new, strict=True)] if totals else list(new)


def model_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """Return the keyword arguments with which the model is called for a batch."""
    if ENCODER_IDS in batch.columns:
        source = {"input_ids": batch.columns[ENCODER_IDS], "attention_mask": batch.columns[ENCODER_MASK]}
        return {**source, "decoder_input_ids": batch.input_ids}
    if not batch.segment_lengths:
        return {"input_ids": batch.input_ids}
    packed = {"input_ids": batch.input_ids, "position_ids": batch.positions}
    if has_packed_attention(model):
        # transformers passes a 4D mask through unchanged; without one it would build a full mask.
        no_mask = batch.input_ids.new_zeros(1, 1, 1, 1)
        return {**packed, "attention_mask": no_mask, "segment_lengths": batch.segment_lengths}
    # A block-diagonal additive mask, which every attention implementation accepts.
    visible = batch.attention_mask()
    mask = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
    mask.masked_fill_(~visible, torch.finfo(model.dtype).min)
    return {**packed, "attention_mask": mask}
