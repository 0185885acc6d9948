"""Generate one token of every row at a time, in a padded batch: ids, masks, positions and the KV cache.

Decoder-only models continue their prompts; the decoder of an encoder-decoder model answers what the encoder has read.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from tunesmith.architecture.shapes import UNLIMITED
from tunesmith.kernels.packing_check import attention_window
from tunesmith.model.load import decoder_config, without_adapter

# A shorter shared prefix is not worth a forward pass.
_MIN_SHARED_TOKENS = 16


def start_decoding(model: Any, prompts: Sequence[Sequence[int]], decoder_prefix_ids: Sequence[int]) -> "DecodingBatch":
    """Return the batch that answers some prompts.

    Args:
        decoder_prefix_ids: ids that the decoder of an encoder-decoder model continues.
    """
    if model.config.is_encoder_decoder:
        return _EncoderDecoderBatch(model, prompts, decoder_prefix_ids)
    return _DecoderOnlyBatch(model, prompts)


class DecodingBatch:
    """Rows that are being generated. `_ids` [rows, tokens] is the input of the next forward pass."""

    _ids: torch.Tensor
    _cache: Any

    def __init__(self, model: Any) -> None:
        self._model = model
        self._logits_kwargs = last_logits_kwargs(model)

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return self._ids.device

    def logits(self) -> torch.Tensor:
        """Run a forward pass over the ids that have not been read; return the fp32 logits [rows, vocabulary]."""
        output = self._model(**self._inputs(), past_key_values=self._cache, use_cache=True, **self._logits_kwargs)
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def append(self, tokens: torch.Tensor) -> None:
        """Append one token to each row, tokens [rows]."""
        self._ids = tokens.unsqueeze(1)

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep the given rows in the given order; a row may be repeated."""
        # `batch_select_indices` would leave out recurrent layers.
        self._cache.reorder_cache(rows)

    def _inputs(self) -> dict[str, Any]:
        raise NotImplementedError


class _DecoderOnlyBatch(DecodingBatch):
    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__(model)
        self._cache = DynamicCache(config=decoder_config(model))
        shared = self._read_shared_prefix(prompts)
        # Padding is on the left, so that the next token of every row is in the last column.
        self._ids, mask = _padded([prompt[shared:] for prompt in prompts], model.device, left=True)
        self._mask = torch.cat([mask.new_ones(len(prompts), shared), mask], 1)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, shared:]

    def _read_shared_prefix(self, prompts: Sequence[Sequence[int]]) -> int:
        """Read the shared prefix of all prompts into the cache once; return its number of tokens.

        Padding then lies between prefix and rest, so this needs layers that depend on earlier tokens by the mask alone.
        """
        shared = shared_prefix_length(prompts)
        if not shared or not has_full_attention(self._model):
            return 0
        ids = torch.tensor([list(prompts[0][:shared])], device=self._model.device)
        self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, **self._logits_kwargs)
        self._cache.batch_repeat_interleave(len(prompts))
        return shared

    def append(self, tokens: torch.Tensor) -> None:
        super().append(tokens)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        self._positions = self._positions[:, -1:] + 1

    def select_rows(self, rows: torch.Tensor) -> None:
        super().select_rows(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def _inputs(self) -> dict[str, Any]:
        return {"input_ids": self._ids, "attention_mask": self._mask, "position_ids": self._positions}


class _EncoderDecoderBatch(DecodingBatch):
    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], decoder_prefix_ids: Sequence[int]) -> None:
        super().__init__(model)
        source, self._mask = _padded(prompts, model.device, left=False)
        self._encoded = model.get_encoder()(input_ids=source, attention_mask=self._mask)
        self._ids = torch.tensor([list(decoder_prefix_ids)] * len(prompts), device=model.device)
        config = decoder_config(model)
        self._cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))

    def select_rows(self, rows: torch.Tensor) -> None:
        super().select_rows(rows)
        self._mask = self._mask[rows]
        self._encoded.last_hidden_state = self._encoded.last_hidden_state[rows]

    def _inputs(self) -> dict[str, Any]:
        return {"encoder_outputs": self._encoded, "attention_mask": self._mask, "decoder_input_ids": self._ids}


def _padded(prompts: Sequence[Sequence[int]], device: torch.device, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask [rows, longest]. The mask hides padding by its position, so any id can pad."""
    ids = [torch.tensor(prompt, dtype=torch.long) for prompt in prompts]
    pad = partial(pad_sequence, batch_first=True, padding_side="left" if left else "right")
    return pad(ids).to(device), pad([torch.ones_like(row) for row in ids]).to(device)


def shared_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Return the length of the shared prefix, without the last token of any prompt; 0 if it is not worth a pass."""
    limit = min(map(len, prompts)) - 1
    shared = next((i for i in range(limit) if len({prompt[i] for prompt in prompts}) > 1), limit)
    return shared if len(prompts) > 1 and shared >= _MIN_SHARED_TOKENS else 0


def has_full_attention(model: Any) -> bool:
    """Whether every layer caches every token and attends to all earlier ones, hidden by the mask alone."""
    layers = DynamicCache(config=decoder_config(model)).layers
    return {type(layer) for layer in layers} == {DynamicLayer} and attention_window(model) == UNLIMITED


def last_logits_kwargs(model: Any) -> dict[str, int]:
    """Return the arguments that limit the logits to the last position, if the model has such an argument."""
    return {"logits_to_keep": 1} if "logits_to_keep" in forward_parameters(model) else {}


def forward_parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the model's own `forward`, without the wrapper of peft."""
    return inspect.signature(without_adapter(model).forward).parameters
