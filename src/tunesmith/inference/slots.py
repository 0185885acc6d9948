"""Rows that a model goes on writing side by side, each in a slot of its own: one may enter whenever another has left.

A row enters with all its tokens but the last one, which is what its first step reads. So entering needs no logits, and
all that is ever chosen is chosen in a step of all rows.
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

# Tokens that are read in one pass when rows enter. For a processor more are no faster, and mean more padding.
_PASS_TOKENS, _PASS_TOKENS_OF_A_GPU = 512, 8192
# Rows whose caches a processor reads up to a width of their own. A GPU prefers one large kernel to several small ones.
_STRIP_ROWS = 8

Ids = Sequence[int]


class Slots:
    """Rows in work: in the slots 0, 1, ... without a gap.

    Args:
        slots: how many rows may be in work.
        room: tokens of the longest row, its answer included.
        beginning: what prompts may begin with, and go on from; it is read once for all of them.
    """

    def __init__(
        self, model: Any, *, slots: int, room: int, beginning: Ids = (), strip_rows: int = _STRIP_ROWS
    ) -> None:
        self._model, self._config = model, decoder_config(model)
        self._last_only = last_logits_kwargs(model)
        takes_more = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in forward_parameters(model).values())
        self._strip_rows = strip_rows if takes_more and model.device.type == "cpu" else slots
        self.cache = SlotCache(len(DynamicCache(config=self._config).layers), slots, room)
        self._next: list[int] = []  # what each row reads next
        self._lengths: list[int] = []  # how much of it is in the cache
        self._beginning = list(beginning)
        if beginning:
            self._read(slice(0, 1), [beginning], 0)
            self._begun_cache = self.cache.beginning(len(beginning))

    @property
    def free(self) -> int:
        """How many rows may enter."""
        return self.cache.slots - len(self._next)

    def enter(self, prompts: Sequence[Ids]) -> int:
        """Read the first prompts, as many as one pass takes, into free slots; return how many entered.

        Padding is least if neighbours are of much the same length.
        """
        together = self._of_one_pass(prompts)
        begun = self._shared(together[0])
        rows = slice(len(self._next), len(self._next) + len(together))
        if begun:
            self.cache.begin(rows, self._begun_cache)
        self._read(rows, [prompt[begun:-1] for prompt in together], begun)
        self._next += [prompt[-1] for prompt in together]
        self._lengths += [len(prompt) - 1 for prompt in together]
        return len(together)

    def logits(self) -> torch.Tensor:
        """Read what was chosen last; return the logits [rows, vocabulary] of what comes next, in fp32."""
        rows, widths = len(self._next), [length + 1 for length in self._lengths]
        positions = torch.tensor(self._lengths, device=self._model.device)
        self.cache.aim(slice(0, rows), positions, max(widths), new=1)
        columns = torch.arange(max(widths), device=positions.device)
        output = self._pass(
            torch.tensor(self._next, device=positions.device).unsqueeze(1),
            positions.unsqueeze(1),
            (columns > positions.unsqueeze(1))[:, None, None],
            cut_strips(widths, self._strip_rows),
        )
        self._lengths = widths
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def leave(self, places: Sequence[int]) -> list[int]:
        """Let rows go, and close up; return where each row that is left stood before."""
        stood = list(range(len(self._next)))
        for place in sorted(places, reverse=True):
            last = stood.pop()
            if place < len(stood):
                self.cache.copy(len(stood), place, self._lengths[last])
                stood[place] = last
        self._lengths = [self._lengths[i] for i in stood]
        self._next = [self._next[i] for i in stood]
        return stood

    def choose(self, tokens: Sequence[int]) -> None:
        """Go on with a token in every row."""
        self._next = list(tokens)

    def _of_one_pass(self, prompts: Sequence[Ids]) -> Sequence[Ids]:
        """Return the first prompts that are read together: of so many padded tokens at most, and begun alike."""
        most = _PASS_TOKENS if self._model.device.type == "cpu" else _PASS_TOKENS_OF_A_GPU
        begun, longest = self._shared(prompts[0]), 0
        for count, prompt in enumerate(prompts):
            longest = max(longest, len(prompt))
            if count and ((count + 1) * longest > most or self._shared(prompt) != begun):
                return prompts[:count]
        return prompts

    def _shared(self, prompt: Ids) -> int:
        """Return how many tokens of a prompt are the beginning that was read already: all of it, or none."""
        length = len(self._beginning)
        return length if len(prompt) > length and list(prompt[:length]) == self._beginning else 0

    def _read(self, rows: slice, prompts: Sequence[Ids], begun: int) -> None:
        """Put prompts, or what follows a beginning of `begun` tokens, into the cache."""
        new = max(map(len, prompts))
        if not new:
            return
        device = self._model.device
        # Padding stands to the right, where no token looks; what it writes there, the answer's tokens write over.
        ids = torch.tensor([[*prompt, *[0] * (new - len(prompt))] for prompt in prompts], device=device)
        positions = torch.arange(begun, begun + new, device=device)
        self.cache.aim(rows, slice(begun, begun + new), begun + new, new=new)
        hidden = torch.arange(begun + new, device=device) > positions.unsqueeze(1)
        self._pass(ids, positions.expand(len(prompts), -1), hidden[None, None])

    def _pass(self, ids: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor, cut: Sequence[Strip] = ()) -> Any:
        # As numbers to add, which every attention takes.
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=hidden.device)
        mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)
        more: dict[str, Any] = {"strips": cut} if len(cut) > 1 else {}
        with attend_in_strips(self._config):
            return self._model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
                **self._last_only,
                **more,
            )
