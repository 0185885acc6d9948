"""Continuous batching: each row has a slot of the KV cache, and a new row takes a slot as soon as one is free.

Admitting a row prefills all of its tokens but the last, which is the input of its first decoding step. So prefill needs
no logits, and every token is chosen in a decoding step of all rows. A row that is longer than a pass is read in several
passes, between which the other rows can be decoded.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from tunesmith.inference.decode_attention import attend_in_strips, cut_strips
from tunesmith.inference.decoding import forward_parameters, last_logits_kwargs
from tunesmith.inference.prefix_cache import PrefixCache
from tunesmith.inference.request import Request, Token, score_tokens
from tunesmith.inference.slot_cache import SlotCache
from tunesmith.model.load import decoder_config
from tunesmith.model.memory import is_out_of_memory

# Tokens per pass that admits rows. On a CPU, larger passes are no faster and need more padding.
_CPU_PASS_TOKENS, _GPU_PASS_TOKENS = 512, 8192
# Tokens per pass that scores a prompt, whose logits [tokens, vocabulary] are large.
_SCORED_PASS_TOKENS = 128
# Rows per strip of attention on a CPU. A GPU prefers one large kernel to several small ones.
_STRIP_ROWS = 8

Ids = Sequence[int]
# Returns the context of a forward pass, given the adapter of each row.
SelectAdapters = Callable[[Sequence[str | None]], AbstractContextManager[None]]


def no_adapters(names: Sequence[str | None]) -> AbstractContextManager[None]:
    """Apply the model itself to all rows."""
    return nullcontext()


@dataclass(slots=True)
class _Reading:
    """A row of which the first `done` tokens are in the last slot; `scores` are those of its prompt."""

    request: Request
    done: int
    scores: list[Token]


class Slots:
    """The rows in the slots 0, 1, ... without a gap.

    Args:
        slots: the maximum number of rows.
        slot_tokens: tokens of the longest row, with its answer.
        prefix: tokens that prompts may begin with; they are read once for all of them.
        strip_rows: rows per strip of attention on a CPU.
        prefixes: beginnings of earlier rows, to which the rows are added.
        select_adapters: applies to each row of a pass its own adapter.
    """

    def __init__(
        self,
        model: Any,
        *,
        slots: int,
        slot_tokens: int,
        prefix: Ids = (),
        strip_rows: int = _STRIP_ROWS,
        prefixes: PrefixCache | None = None,
        select_adapters: SelectAdapters = no_adapters,
    ) -> None:
        self._model, self._config = model, decoder_config(model)
        parameters = forward_parameters(model).values()
        has_kwargs = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        self._strip_rows = strip_rows if has_kwargs and model.device.type == "cpu" else slots
        self.cache = SlotCache(len(DynamicCache(config=self._config).layers), slots, slot_tokens)
        self._options = {"past_key_values": self.cache, "use_cache": True}
        self._last_only: dict[str, Any] = dict(last_logits_kwargs(model))
        self._select = select_adapters
        self._rows: list[Request] = []
        self._next: list[int] = []  # the next input token of each row
        self._lengths: list[int] = []  # the number of its tokens in the cache
        self._reading: _Reading | None = None
        self.has_read = False
        self._keeps_rows = prefixes is not None and prefixes.max_bytes > 0
        self._prefixes = PrefixCache(2**62) if prefixes is None else prefixes
        if prefix:
            self._read(slice(0, 1), [prefix], 0, [None])
            self._prefixes.add(None, prefix, self.cache.read_columns(0, len(prefix)))

    @property
    def free(self) -> int:
        """The number of free slots."""
        return self.cache.slots - len(self._next)

    def admit(self, requests: Sequence[Request]) -> int:
        """Read the first requests, as many as fit in one pass, into free slots; return their number.

        It is 0 if the first one needs another pass. Rows of similar length need the least padding. Afterwards
        `has_read` is whether there was a pass: none is needed if all tokens but the last are known.
        """
        first, limit = requests[0], self._pass_tokens
        self.has_read = False
        if self._reading is not None and self._reading.request is not first:
            self._reading = None  # it was cancelled
        if first.needs_prompt_scores or len(first.tokens) - 1 > limit:
            return self._read_long(first, _SCORED_PASS_TOKENS if first.needs_prompt_scores else limit)
        admitted, cached, beginnings = self._of_one_pass(requests, limit)
        rows = slice(len(self._next), len(self._next) + len(admitted))
        for place, columns in enumerate(beginnings if cached else (), rows.start):
            self.cache.write_columns(place, columns)
        adapters = [request.adapter for request in admitted]
        self._read(rows, [request.tokens[cached:-1] for request in admitted], cached, adapters)
        for request in admitted:
            self._prefixes.count(cached)
            self._enter(request)
        return len(admitted)

    def _read_long(self, request: Request, limit: int) -> int:
        """Read at most `limit` tokens of a row into the last slot; return 1 when it is complete, else 0."""
        last, tokens = self.cache.slots - 1, request.tokens
        reading = self._reading
        if reading is None:
            # Scores need the logits of all tokens, so none can be skipped.
            longest = self._prefixes.longest
            known, columns = (0, []) if request.needs_prompt_scores else longest(request.adapter, tokens)
            reading = self._reading = _Reading(request, known, [])
            if known:
                self.cache.write_columns(last, columns)
            self._prefixes.count(known)
        end = min(reading.done + limit, len(tokens) - 1)
        chunk, slot = tokens[reading.done : end], slice(last, last + 1)
        output = self._read(slot, [chunk], reading.done, [request.adapter], all_logits=request.needs_prompt_scores)
        if request.needs_prompt_scores and output is not None:
            following = tokens[reading.done + 1 : end + 1]
            reading.scores += score_tokens(output.logits[0], following, [request.top_scores or 0] * len(following))
        reading.done = end
        if end < len(tokens) - 1:
            return 0
        if request.needs_prompt_scores:
            request.prompt_scores = [Token(tokens[0]), *reading.scores]
        self._reading, place = None, len(self._next)
        if place != last:
            self.cache.copy_slot(last, place, end)
        self._enter(request)
        return 1

    def _enter(self, request: Request) -> None:
        """Add a row that has been read to the rows that are decoded."""
        tokens, place = request.tokens, len(self._next)
        self._rows.append(request)
        self._next.append(tokens[-1])
        self._lengths.append(len(tokens) - 1)
        if self._keeps_rows:
            self._keep(place)

    def _keep(self, place: int) -> None:
        """Keep the tokens of a row for rows that begin like it; without memory for a copy, drop all that are kept."""
        request, length = self._rows[place], self._lengths[place]
        try:
            columns = self.cache.read_columns(place, length)
        except Exception as error:  # also while a slot is freed, which must not fail
            if not is_out_of_memory(error):
                raise
            self._prefixes.clear()
            return
        self._prefixes.add(request.adapter, request.tokens[:length], columns)

    def logits(self) -> torch.Tensor:
        """Run a step over the next token of every row; return the fp32 logits [rows, vocabulary]."""
        rows, widths = len(self._next), [length + 1 for length in self._lengths]
        positions = torch.tensor(self._lengths, device=self._model.device)
        self.cache.set_target(slice(0, rows), positions, max(widths), new=1)
        columns = torch.arange(max(widths), device=positions.device)
        ids, hidden = torch.tensor(self._next, device=positions.device), columns > positions.unsqueeze(1)
        strips = cut_strips(widths, self._strip_rows)
        adapters = [request.adapter for request in self._rows]
        options = self._last_only | ({"strips": strips} if len(strips) > 1 else {})
        output = self._forward(ids.unsqueeze(1), positions.unsqueeze(1), hidden[:, None, None], adapters, options)
        self._lengths = widths
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def release(self, places: Sequence[int]) -> list[int]:
        """Free the slots of some rows and move others into the gaps.

        Returns:
            The previous slot of each remaining row, by its new slot.
        """
        if self._keeps_rows:
            for place in places:
                self._keep(place)
        old_places = list(range(len(self._next)))
        for place in sorted(places, reverse=True):
            last = old_places.pop()
            if place < len(old_places):
                self.cache.copy_slot(len(old_places), place, self._lengths[last])
                old_places[place] = last
        self._lengths = [self._lengths[i] for i in old_places]
        self._next = [self._next[i] for i in old_places]
        self._rows = [self._rows[i] for i in old_places]
        return old_places

    def append(self, tokens: Sequence[int]) -> None:
        """Append one token to each row."""
        self._next = list(tokens)

    @property
    def _pass_tokens(self) -> int:
        return _CPU_PASS_TOKENS if self._model.device.type == "cpu" else _GPU_PASS_TOKENS

    def _of_one_pass(
        self, requests: Sequence[Request], limit: int
    ) -> tuple[Sequence[Request], int, list[list[torch.Tensor]]]:
        """Return the first requests that one prefill pass takes, the known tokens of each, and those in the cache.

        They stay within its token limit, all of them have the same number of known tokens, and all can be read at once.
        """
        beginnings: list[list[torch.Tensor]] = []
        cached = longest = 0
        for count, request in enumerate(requests):
            known, columns = self._prefixes.longest(request.adapter, request.tokens)
            longest = max(longest, len(request.tokens))
            if count and ((count + 1) * (longest - known) > limit or known != cached or request.needs_prompt_scores):
                return requests[:count], cached, beginnings
            cached = known
            beginnings.append(columns)
        return requests, cached, beginnings

    def _read(
        self,
        rows: slice,
        prompts: Sequence[Ids],
        cached: int,
        adapters: Sequence[str | None],
        *,
        all_logits: bool = False,
    ) -> Any:
        """Read prompts into the cache, behind `cached` tokens that are there already; return the output of the pass."""
        new = max(map(len, prompts))
        if not new:
            return None
        self.has_read = True
        device = self._model.device
        # Padding is on the right, where no token attends to it; the tokens of the answer overwrite its cache entries.
        ids = torch.tensor([[*prompt, *[0] * (new - len(prompt))] for prompt in prompts], device=device)
        positions = torch.arange(cached, cached + new, device=device)
        self.cache.set_target(rows, slice(cached, cached + new), cached + new, new=new)
        hidden = torch.arange(cached + new, device=device) > positions.unsqueeze(1)
        options = {} if all_logits else self._last_only
        return self._forward(ids, positions.expand(len(prompts), -1), hidden[None, None], adapters, options)

    def _forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor,
        adapters: Sequence[str | None],
        options: dict[str, Any],
    ) -> Any:
        # An additive mask, which every implementation of attention accepts.
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=hidden.device)
        mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)
        options = {**self._options, **options}
        with attend_in_strips(self._config), self._select(adapters):
            return self._model(input_ids=ids, position_ids=positions, attention_mask=mask, **options)
