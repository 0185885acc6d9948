"""One row at a time, with the interface of `Slots`: for models that cannot generate in slots.

Such models have an encoder, a sliding window, recurrent layers, or a forward pass that does not accept our cache.
"""

from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.inference.decoding import DecodingBatch, start_decoding
from tunesmith.inference.request import Request, Token, score_tokens
from tunesmith.inference.slots import SelectAdapters


class SingleRow:
    """At most one row.

    Args:
        select_adapters: applies the adapter of the row to a pass.
    """

    has_read = False  # the first step reads the prompt

    def __init__(self, model: Any, select_adapters: SelectAdapters) -> None:
        self._model, self._select = model, select_adapters
        self._row: Request | None = None
        self._batch: DecodingBatch | None = None

    @property
    def free(self) -> int:
        """1 without a row, else 0."""
        return 0 if self._row else 1

    def admit(self, requests: Sequence[Request]) -> int:
        """Start the first request; return 1."""
        request = requests[0]
        with self._select([request.adapter]):
            if request.needs_prompt_scores:
                self._score_prompt(request)
            if request.decoder_prefix_ids:
                decoder_ids = [*request.decoder_prefix_ids, *request.ids]
                self._batch = start_decoding(self._model, [request.prompt], decoder_ids)
            else:
                self._batch = start_decoding(self._model, [request.tokens], ())
        self._row = request
        return 1

    def logits(self) -> torch.Tensor:
        """Run a step; return the fp32 logits [1, vocabulary]."""
        assert self._row is not None
        assert self._batch is not None
        with self._select([self._row.adapter]):
            return self._batch.logits()

    def release(self, places: Sequence[int]) -> list[int]:
        """Drop the row if its place, 0, is given; return the previous place of each remaining row."""
        if places:
            self._row = self._batch = None
        return [] if self._row is None else [0]

    def append(self, tokens: Sequence[int]) -> None:
        """Append one token to each row."""
        if self._batch is not None:
            self._batch.append(torch.tensor(tokens, device=self._batch.device, dtype=torch.long))

    def _score_prompt(self, request: Request) -> None:
        ids = torch.tensor([[*request.prompt]], device=self._model.device)
        logits = self._model(input_ids=ids, use_cache=False).logits[0, :-1]
        tokens = score_tokens(logits, request.prompt[1:], [request.top_scores or 0] * len(logits))
        request.prompt_scores = [Token(request.prompt[0]), *tokens]
