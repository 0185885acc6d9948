"""Continuous batching: each row has a slot of the KV cache, and a new row takes a slot as soon as one is free.

Admitting a row prefills all tokens of its prompt but the last, which is the input of its first decoding step. So
prefill needs no logits, and every token is chosen in a decoding step of all rows.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from tunesmith.inference.decode_attention import Strip, attend_in_strips, cut_strips
from tunesmith.inference.decoding import forward_parameters, last_logits_kwargs
from tunesmith.inference.slot_cache import SlotCache
from tunesmith.model.load import decoder_config

# Tokens per pass that admits rows. On a CPU, larger passes are no faster and need more padding.
_CPU_PASS_TOKENS, _GPU_PASS_TOKENS = 512, 8192
# Rows per strip of attention on a CPU. A GPU prefers one large kernel to several small ones.
_STRIP_ROWS = 8

Ids = Sequence[int]


class Slots:
    """The rows in the slots 0, 1, ... without a gap.

    Args:
        slots: the maximum number of rows.
        slot_tokens: tokens of the longest row, with its answer.
        prefix: tokens that prompts may begin with; they are read once for all of them.
        strip_rows: rows per strip of attention on a CPU.
    """

    def __init__(
        self, model: Any, *, slots: int, slot_tokens: int, prefix: Ids = (), strip_rows: int = _STRIP_ROWS
    ) -> None:
        self._model, self._config = model, decoder_config(model)
        parameters = forward_parameters(model).values()
        has_kwargs = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        self._strip_rows = strip_rows if has_kwargs and model.device.type == "cpu" else slots
        self.cache = SlotCache(len(DynamicCache(config=self._config).layers), slots, slot_tokens)
        self._options = {"past_key_values": self.cache, "use_cache": True, **last_logits_kwargs(model)}
        self._next: list[int] = []  # the next input token of each row
        self._lengths: list[int] = []  # the number of its tokens in the cache
        self._prefix = list(prefix)
        if prefix:
            self._read(slice(0, 1), [prefix], 0)
            self._prefix_columns = self.cache.read_prefix(len(prefix))

    @property
    def free(self) -> int:
        """The number of free slots."""
        return self.cache.slots - len(self._next)

    def admit(self, prompts: Sequence[Ids]) -> int:
        """Read the first prompts, as many as fit in one pass, into free slots; return their number.

        Prompts of similar length need the least padding.
        """
        admitted = self._of_one_pass(prompts)
        cached = self._cached_prefix(admitted[0])
        rows = slice(len(self._next), len(self._next) + len(admitted))
        if cached:
            self.cache.write_prefix(rows, self._prefix_columns)
        self._read(rows, [prompt[cached:-1] for prompt in admitted], cached)
        self._next += [prompt[-1] for prompt in admitted]
        self._lengths += [len(prompt) - 1 for prompt in admitted]
        return len(admitted)

    def logits(self) -> torch.Tensor:
        """Run a step over the next token of every row; return the fp32 logits [rows, vocabulary]."""
        rows, widths = len(self._next), [length + 1 for length in self._lengths]
        positions = torch.tensor(self._lengths, device=self._model.device)
        self.cache.set_target(slice(0, rows), positions, max(widths), new=1)
        columns = torch.arange(max(widths), device=positions.device)
        ids, hidden = torch.tensor(self._next, device=positions.device), columns > positions.unsqueeze(1)
        strips = cut_strips(widths, self._strip_rows)
        output = self._forward(ids.unsqueeze(1), positions.unsqueeze(1), hidden[:, None, None], strips)
        self._lengths = widths
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def release(self, places: Sequence[int]) -> list[int]:
        """Free the slots of some rows and move others into the gaps.

        Returns:
            The previous slot of each remaining row, by its new slot.
        """
        old_places = list(range(len(self._next)))
        for place in sorted(places, reverse=True):
            last = old_places.pop()
            if place < len(old_places):
                self.cache.copy_slot(len(old_places), place, self._lengths[last])
                old_places[place] = last
        self._lengths = [self._lengths[i] for i in old_places]
        self._next = [self._next[i] for i in old_places]
        return old_places

    def append(self, tokens: Sequence[int]) -> None:
        """Append one token to each row."""
        self._next = list(tokens)

    def _of_one_pass(self, prompts: Sequence[Ids]) -> Sequence[Ids]:
        """Return the first prompts that one prefill pass takes.

        They stay within its token limit, and either all of them begin with the shared prefix or none does.
        """
        limit = _CPU_PASS_TOKENS if self._model.device.type == "cpu" else _GPU_PASS_TOKENS
        cached, longest = self._cached_prefix(prompts[0]), 0
        for count, prompt in enumerate(prompts):
            longest = max(longest, len(prompt))
            if count and ((count + 1) * longest > limit or self._cached_prefix(prompt) != cached):
                return prompts[:count]
        return prompts

    def _cached_prefix(self, prompt: Ids) -> int:
        """Return the length of the prefix if the prompt begins with all of it, else 0."""
        length = len(self._prefix)
        return length if len(prompt) > length and list(prompt[:length]) == self._prefix else 0

    def _read(self, rows: slice, prompts: Sequence[Ids], cached: int) -> None:
        """Read prompts into the cache, behind `cached` tokens that are there already."""
        new = max(map(len, prompts))
        if not new:
            return
        device = self._model.device
        # Padding is on the right, where no token attends to it; the tokens of the answer overwrite its cache entries.
        ids = torch.tensor([[*prompt, *[0] * (new - len(prompt))] for prompt in prompts], device=device)
        positions = torch.arange(cached, cached + new, device=device)
        self.cache.set_target(rows, slice(cached, cached + new), cached + new, new=new)
        hidden = torch.arange(cached + new, device=device) > positions.unsqueeze(1)
        self._forward(ids, positions.expand(len(prompts), -1), hidden[None, None])

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor, strips: Sequence[Strip] = ()
    ) -> Any:
        # An additive mask, which every implementation of attention accepts.
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=hidden.device)
        mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)
        options = {**self._options, "strips": strips} if len(strips) > 1 else self._options
        with attend_in_strips(self._config):
            return self._model(input_ids=ids, position_ids=positions, attention_mask=mask, **options)
