"""Answer many requests on one model at the same time; each may be submitted or cancelled at any time."""

from collections import deque
from collections.abc import Sequence
from itertools import count, islice
from typing import Any

import torch

from tunesmith.architecture.base_model import require_embedding_rows
from tunesmith.core.errors import RecipeError
from tunesmith.inference.request import Answer, Limits, Request, advance
from tunesmith.inference.sampling import GREEDY, Sampling
from tunesmith.inference.slots import Slots


class Session:
    """Answers requests on a model that can write in slots, see `slot_check.slot_budget`.

    A session shares nothing with other sessions and ignores signals; calls must come from one thread at a time. In fp32
    a request gets the tokens that it gets alone. After an error in `step` a session cannot be used any more.

    Args:
        slots: how many requests are answered at the same time; the others wait in the order of their submission.
        room: the most tokens of a prompt and its answer together.
        beginning: tokens that are read once for all prompts that begin with them; prompts need not begin with them.
    """

    def __init__(self, model: Any, *, slots: int, room: int, beginning: Sequence[int] = ()) -> None:
        self._room = room
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        with torch.inference_mode():
            self._slots = Slots(model, slots=slots, room=room, beginning=beginning)
        self._ids = count()
        self._waiting: deque[Request] = deque()
        self._rows: list[Request] = []  # in the order of their slots
        self._answers: list[Answer] = []

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or in work."""
        return bool(self._waiting or self._rows)

    def submit(self, prompt: Sequence[int], limits: Limits, sampling: Sampling = GREEDY) -> int:
        """Add a request; return its id.

        Raises:
            RecipeError: the prompt is empty, does not fit in a slot with its answer, or holds tokens that the model
                has no vectors for.
        """
        if not prompt:
            raise RecipeError("the prompt is empty", code="usage", hint="give it at least one token")
        if (longest := len(prompt) + limits.max_new_tokens) > self._room:
            raise RecipeError(
                f"prompt and answer may have {longest} tokens, and a slot has room for {self._room}",
                code="usage",
                hint="shorten the prompt, lower the limit of the answer, or open the session with more room",
            )
        require_embedding_rows(max(prompt), self._vocabulary, where="prompt")
        request = Request(next(self._ids), prompt, limits, sampling)
        self._waiting.append(request)
        return request.index

    @torch.inference_mode()
    def step(self) -> dict[int, int]:
        """Make one forward pass: read prompts if a slot is free, else write one token of every request in work.

        Returns:
            The token of each request by its id, stop tokens left out; nothing if prompts were read.
        """
        if self._waiting and self._slots.free:
            entering = [request.prompt for request in islice(self._waiting, self._slots.free)]
            entered = self._slots.enter(entering)
            self._rows += [self._waiting.popleft() for _ in range(entered)]
            return {}
        if not self._rows:
            return {}
        tokens, answers = advance(self._rows, self._slots.logits())
        written = {row.index: token for row, token in zip(self._rows, tokens, strict=True) if not row.ends_with(token)}
        self._answers += [answer for answer in answers if answer is not None]
        stood = self._leave([place for place, answer in enumerate(answers) if answer is not None])
        self._slots.choose([tokens[place] for place in stood])
        return written

    def finished(self) -> list[Answer]:
        """Return the answers that were completed since the last call, each with the id of its request as `index`."""
        answers, self._answers = self._answers, []
        return answers

    @torch.inference_mode()
    def cancel(self, request: int) -> None:
        """Drop a request in any state, and its answer if that was not collected yet; unknown ids are ignored."""
        self._waiting = deque(one for one in self._waiting if one.index != request)
        self._leave([place for place, row in enumerate(self._rows) if row.index == request])
        self._answers = [answer for answer in self._answers if answer.index != request]

    def _leave(self, places: Sequence[int]) -> list[int]:
        """Free the slots of some rows; return the earlier place of each remaining row."""
        stood = self._slots.leave(places)
        self._rows = [self._rows[place] for place in stood]
        return stood
