"""The loss of a batch, for which only trained positions go through the output layer.

For most tasks a tenth of the tokens is trained, and the output layer's logits [positions, vocabulary] are what fills
memory. The hidden states are cut down just before it, so whatever a model does to its logits afterwards (soft-capping,
scaling) is done by the model's own code. Where many tokens are trained they go through it in chunks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tunesmith.core.records import ENCODER_IDS
from tunesmith.data.batch import ENCODER_MASK, Batch
from tunesmith.estimate.memory import LOGITS_CHUNK
from tunesmith.kernels.packed_attention import has_packed_attention
from tunesmith.model.load import without_adapter


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """`nll` in nats, `correct`, and the place of its sequence in the batch for every trained token: [trained tokens].

    `columns` are the batch's by name: a value for each trained token, or for each sequence. `examples` [sequences] is
    the place of each sequence's example in the batch.
    """

    nll: torch.Tensor
    correct: torch.Tensor
    rows: torch.Tensor
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    examples: torch.Tensor | None = None

    def by_sequence(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of values [trained tokens] over each sequence of the batch [sequences]."""
        assert self.examples is not None
        # Not `index_add`, which adds in any order on a GPU.
        sequences = torch.arange(len(self.examples), device=values.device)
        return torch.where(self.rows == sequences[:, None], values, 0).sum(1)


def token_loss(model: Any, batch: Batch) -> TokenLoss:
    """Return the negative log-likelihood of every trained token.

    Args:
        model: a causal language model or one with encoder and decoder, in or out of peft.
        batch: `loss_mask` marks the tokens to predict; each is predicted from the position before it. What a decoder
            starts from is the first token of `input_ids`, so targets need no shifting.
    """
    predicted = batch.loss_mask[:, 1:]
    targets = batch.input_ids[:, 1:][predicted]
    decoder = _decoder(model) if len(targets) > LOGITS_CHUNK else None
    if decoder is not None:
        nll, correct = _in_chunks(model, decoder, batch, predicted, targets)
    else:
        nll, correct = _compared(_logits_at(model, batch, predicted), targets)
    columns = {
        column.name: values[:, 1:][predicted] if column.per == "token" else values
        for column, values in batch.columns.items()
        if column.per != "ids"
    }
    return TokenLoss(nll, correct, batch.segment_ids[:, 1:][predicted], columns, batch.examples)


def _compared(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss and correctness [tokens] of logits [tokens, vocabulary]."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nll = functional.cross_entropy(logits, targets, reduction="none")
    return nll, logits.detach().argmax(-1) == targets


def _logits_at(model: Any, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
    """Return logits [selected, vocabulary] at the marked positions [sequences, length - 1]."""
    output_layer = model.get_output_embeddings()

    def select(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0][:, :-1][positions].unsqueeze(0), *args[1:])

    hook = output_layer.register_forward_pre_hook(select)
    try:
        logits: torch.Tensor = model(**model_inputs(model, batch), use_cache=False).logits
    finally:
        hook.remove()
    return logits.squeeze(0)


def _decoder(model: Any) -> Any:
    """Return the part of a model that ends in hidden states and that its forward calls; None where there is none."""
    whole = without_adapter(model)
    decoder = None if model.config.is_encoder_decoder else whole.get_decoder()
    return decoder if decoder is getattr(whole, whole.base_model_prefix, None) else None


def _in_chunks(
    model: Any, decoder: Any, batch: Batch, positions: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss and correctness [tokens] without ever holding the logits of all tokens."""
    whole, output = without_adapter(model), decoder(**model_inputs(model, batch), use_cache=False)
    hidden = output.last_hidden_state[:, :-1][positions]

    def compared(some: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # What a model does to its logits stays its own: its forward runs, with a decoder that gives these states.
        def given(*args: Any, **kwargs: Any) -> Any:
            return type(output)(**{**output, "last_hidden_state": some.unsqueeze(0)})

        own = vars(decoder).get("forward")
        decoder.forward = given
        try:
            logits = whole(input_ids=batch.input_ids[:1, :1], use_cache=False).logits
        finally:
            if own is None:
                del decoder.forward
            else:
                decoder.forward = own
        return _compared(logits.squeeze(0), wanted)

    if not torch.is_grad_enabled():
        found = [
            compared(*chunk)
            for chunk in zip(torch.split(hidden, LOGITS_CHUNK), torch.split(targets, LOGITS_CHUNK), strict=True)
        ]
        return torch.cat([nll for nll, _ in found]), torch.cat([correct for _, correct in found])
    trained = [weight for weight in model.get_output_embeddings().parameters() if weight.requires_grad]
    nll, correct = _ChunkedLoss.apply(hidden, targets, compared, *trained)  # type: ignore[no-untyped-call]
    return nll, correct


class _ChunkedLoss(torch.autograd.Function):
    """Loss of hidden states [tokens, hidden], a chunk at a time, with the gradient taken while its logits are there.

    A token's loss depends on its own hidden state alone, so its gradient is kept for a loss of 1 and multiplied by the
    token's weight in the backward pass. The gradients of the output layer's weights are sums over tokens: they are kept
    for equal weights of all tokens, and computed again from the hidden states if the weights differ.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, compared: Any, *weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return loss and correctness [tokens]."""
        nll, correct, d_hidden = [], [], torch.empty_like(hidden)
        d_weights: list[torch.Tensor] = []
        for start in range(0, len(targets), LOGITS_CHUNK):
            some = hidden[start : start + LOGITS_CHUNK].detach().requires_grad_()
            with torch.enable_grad():
                loss, right = compared(some, targets[start : start + LOGITS_CHUNK])
                d_some, *more = torch.autograd.grad(loss.sum(), [some, *weights])
            d_hidden[start : start + LOGITS_CHUNK] = d_some
            d_weights = [old.add_(new) for old, new in zip(d_weights, more, strict=True)] if d_weights else more
            nll.append(loss.detach())
            correct.append(right)
        ctx.save_for_backward(d_hidden, *d_weights, *weights, *((hidden, targets) if weights else ()))
        device = hidden.device.type
        ctx.compared, ctx.count = compared, len(weights)
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        found = torch.cat(correct)
        ctx.mark_non_differentiable(found)
        return torch.cat(nll), found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients of hidden states and weights."""
        d_hidden, *saved = ctx.saved_tensors
        d_weights, weights, rest = saved[: ctx.count], saved[ctx.count : 2 * ctx.count], saved[2 * ctx.count :]
        back = gradients[0]
        if weights:
            equal = bool(torch.all(back == back[0]))
            d_weights = [one * back[0] for one in d_weights] if equal else _weighted(ctx, back, weights, *rest)
        return d_hidden * back.unsqueeze(1).to(d_hidden.dtype), None, None, *d_weights


def _weighted(
    ctx: Any, back: torch.Tensor, weights: list[torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor
) -> list[torch.Tensor]:
    """Return the gradients of the output layer's weights for tokens that count `back` [tokens] each."""
    device, dtype, enabled = ctx.autocast
    sums: list[torch.Tensor] = []
    for start in range(0, len(targets), LOGITS_CHUNK):
        chunk = slice(start, start + LOGITS_CHUNK)
        with torch.enable_grad(), torch.autocast(device, dtype, enabled=enabled):
            loss, _ = ctx.compared(hidden[chunk].detach(), targets[chunk])
            more = torch.autograd.grad(loss, weights, back[chunk])
        sums = [old.add_(new) for old, new in zip(sums, more, strict=True)] if sums else list(more)
    return sums


def model_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """Return what the model is called with."""
    if ENCODER_IDS in batch.columns:
        source = {"input_ids": batch.columns[ENCODER_IDS], "attention_mask": batch.columns[ENCODER_MASK]}
        return {**source, "decoder_input_ids": batch.input_ids}
    if not batch.segment_lengths:
        return {"input_ids": batch.input_ids}
    packed = {"input_ids": batch.input_ids, "position_ids": batch.positions}
    if has_packed_attention(model):
        # A mask of four dimensions is handed on as it is; without one transformers would make a whole one.
        return {**packed, "attention_mask": batch.input_ids.new_zeros(1, 1, 1, 1), "row_parts": batch.segment_lengths}
    # What keeps rows of one sequence apart, as numbers to add, which every attention takes.
    sees = batch.attention_mask()
    hidden = torch.zeros(sees.shape, dtype=model.dtype, device=sees.device)
    hidden.masked_fill_(~sees, torch.finfo(model.dtype).min)
    return {**packed, "attention_mask": hidden}
