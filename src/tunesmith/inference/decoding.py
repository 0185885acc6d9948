"""Rows that a model goes on writing side by side, one token at a time: masks, positions and caches in step.

The same for a decoder that continues its prompt and for one that answers what an encoder has read.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from tunesmith.architecture.shapes import UNLIMITED
from tunesmith.kernels.packing_check import attention_window
from tunesmith.model.load import decoder_config, without_adapter

# A beginning that is shorter is not worth a forward pass of its own.
_LEAST_SHARED = 16


def start_decoding(model: Any, prompts: Sequence[Sequence[int]], decoder_start_ids: Sequence[int]) -> "Decoding":
    """Return the rows that answer some prompts.

    Args:
        decoder_start_ids: what a decoder beside an encoder goes on from.
    """
    return (
        _Answering(model, prompts, decoder_start_ids)
        if model.config.is_encoder_decoder
        else _Continuing(model, prompts)
    )


class Decoding:
    """Rows in work. What is fed next is `_ids` [rows, tokens not yet read]."""

    _ids: torch.Tensor
    _cache: Any

    def __init__(self, model: Any) -> None:
        self._model = model
        self._last_only = last_logits_kwargs(model)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._ids.device

    def logits(self) -> torch.Tensor:
        """Read what was chosen last; return the logits [rows, vocabulary] of what comes next, in fp32."""
        output = self._model(**self._inputs(), past_key_values=self._cache, use_cache=True, **self._last_only)
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def choose(self, tokens: torch.Tensor) -> None:
        """Go on with a token [rows] in every row."""
        self._ids = tokens.unsqueeze(1)

    def take(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, in this order; a row may be taken more than once."""
        # `batch_select_indices` would leave out recurrent layers.
        self._cache.reorder_cache(rows)

    def _inputs(self) -> dict[str, Any]:
        raise NotImplementedError


class _Continuing(Decoding):
    """A decoder alone, which continues its prompt."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__(model)
        self._cache = DynamicCache(config=decoder_config(model))
        shared = self._read_shared(prompts)
        # Padding goes to the left, so that every row's next token stands in the last column.
        self._ids, mask = _padded([prompt[shared:] for prompt in prompts], model.device, left=True)
        self._mask = torch.cat([mask.new_ones(len(prompts), shared), mask], 1)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, shared:]

    def _read_shared(self, prompts: Sequence[Sequence[int]]) -> int:
        """Put what all prompts begin with in the cache, once for all rows; return how many tokens that is.

        Only where every layer sees all that came before by mask alone: padding then stands between beginning and rest.
        """
        shared = shared_prefix_length(prompts)
        if not shared or not has_full_attention(self._model):
            return 0
        ids = torch.tensor([list(prompts[0][:shared])], device=self._model.device)
        self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, **self._last_only)
        self._cache.batch_repeat_interleave(len(prompts))
        return shared

    def choose(self, tokens: torch.Tensor) -> None:
        super().choose(tokens)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        self._positions = self._positions[:, -1:] + 1

    def take(self, rows: torch.Tensor) -> None:
        super().take(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def _inputs(self) -> dict[str, Any]:
        return {"input_ids": self._ids, "attention_mask": self._mask, "position_ids": self._positions}


class _Answering(Decoding):
    """A decoder beside an encoder, which has read the prompts once and for all."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], decoder_start_ids: Sequence[int]) -> None:
        super().__init__(model)
        source, self._mask = _padded(prompts, model.device, left=False)
        self._encoded = model.get_encoder()(input_ids=source, attention_mask=self._mask)
        self._ids = torch.tensor([list(decoder_start_ids)] * len(prompts), device=model.device)
        config = decoder_config(model)
        self._cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))

    def take(self, rows: torch.Tensor) -> None:
        super().take(rows)
        self._mask = self._mask[rows]
        self._encoded.last_hidden_state = self._encoded.last_hidden_state[rows]

    def _inputs(self) -> dict[str, Any]:
        return {"encoder_outputs": self._encoded, "attention_mask": self._mask, "decoder_input_ids": self._ids}


def _padded(prompts: Sequence[Sequence[int]], device: torch.device, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask [rows, longest]; masks go by position, so any id will do as padding."""
    width = max(map(len, prompts))
    pads = [[0] * (width - len(prompt)) for prompt in prompts]
    ids = [pad + list(p) if left else list(p) + pad for pad, p in zip(pads, prompts, strict=True)]
    mask = [pad + [1] * len(p) if left else [1] * len(p) + pad for pad, p in zip(pads, prompts, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def shared_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, their last ones left out; 0 where it is not worth a pass."""
    most = min(map(len, prompts)) - 1
    shared = next((i for i in range(most) if len({prompt[i] for prompt in prompts}) > 1), most)
    return shared if len(prompts) > 1 and shared >= _LEAST_SHARED else 0


def has_full_attention(model: Any) -> bool:
    """Say whether every layer keeps every token, and sees all that came before by mask alone."""
    layers = DynamicCache(config=decoder_config(model)).layers
    return {type(layer) for layer in layers} == {DynamicLayer} and attention_window(model) == UNLIMITED


def last_logits_kwargs(model: Any) -> dict[str, int]:
    """Ask for the last position's logits only, where the model knows how to."""
    return {"logits_to_keep": 1} if "logits_to_keep" in forward_parameters(model) else {}


def forward_parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    """Return what the model itself takes, without what peft puts around it."""
    return inspect.signature(without_adapter(model).forward).parameters
