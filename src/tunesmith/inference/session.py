"""Answer many requests on one model at the same time; each can be submitted or cancelled at any time."""

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
    """Requests on a model that can generate in slots, see `slot_check.slot_budget`.

    A session shares nothing with other sessions and ignores signals. It is not thread-safe. In fp32 a request gets the
    same tokens as if it were alone. After an error in `step` the session is unusable.

    Args:
        slots: number of requests that are answered at the same time. The others wait in the order of submission.
        slot_tokens: the maximum number of tokens of a prompt with its answer.
        prefix: tokens that are read once for all prompts that begin with them; other prompts are allowed.
    """

    def __init__(self, model: Any, *, slots: int, slot_tokens: int, prefix: Sequence[int] = ()) -> None:
        self._slot_tokens = slot_tokens
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        with torch.inference_mode():
            self._slots = Slots(model, slots=slots, slot_tokens=slot_tokens, prefix=prefix)
        self._ids = count()
        self._waiting: deque[Request] = deque()
        self._rows: list[Request] = []  # in the order of their slots
        self._answers: list[Answer] = []

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or being answered."""
        return bool(self._waiting or self._rows)

    def submit(self, prompt: Sequence[int], limits: Limits, sampling: Sampling = GREEDY) -> int:
        """Add a request; return its id. Raises the errors of `add`."""
        request = Request(next(self._ids), prompt, limits, sampling)
        self.add(request)
        return request.index

    def add(self, request: Request) -> None:
        """Add a request whose index is its id, which no other request has.

        Raises:
            RecipeError: the prompt is empty, does not fit in a slot with its answer, or has tokens beyond the model's
                embedding.
        """
        self.check(request)
        self._waiting.append(request)

    def check(self, request: Request) -> None:
        """Raise the errors of `add`. Can be called from any thread."""
        if not request.prompt:
            raise RecipeError("the prompt is empty", code="empty-prompt", hint="give it at least one token")
        if (longest := len(request.prompt) + request.limits.max_new_tokens) > self._slot_tokens:
            message = f"prompt plus `max_new_tokens` is {longest} tokens, but a slot holds only {self._slot_tokens}"
            hint = "shorten the prompt, lower max_new_tokens, or open the session with more slot_tokens"
            raise RecipeError(message, code="prompt-too-long", hint=hint)
        require_embedding_rows(max(request.prompt), self._vocabulary, where="prompt")

    @torch.inference_mode()
    def step(self) -> dict[int, int]:
        """Run one forward pass: prefill waiting prompts if a slot is free, else generate one token for every request.

        Returns:
            The new token of each request by its id, without stop tokens; empty if the pass was a prefill.
        """
        if self._waiting and self._slots.free:
            prompts = [request.prompt for request in islice(self._waiting, self._slots.free)]
            admitted = self._slots.admit(prompts)
            self._rows += [self._waiting.popleft() for _ in range(admitted)]
            return {}
        if not self._rows:
            return {}
        tokens, answers = advance(self._rows, self._slots.logits())
        pairs = zip(self._rows, tokens, strict=True)
        new_tokens = {row.index: token for row, token in pairs if not row.ends_with(token)}
        self._answers += [answer for answer in answers if answer is not None]
        old_places = self._release([place for place, answer in enumerate(answers) if answer is not None])
        self._slots.append([tokens[place] for place in old_places])
        return new_tokens

    def finished(self) -> list[Answer]:
        """Return the answers completed since the last call, each with the id of its request as `index`."""
        answers, self._answers = self._answers, []
        return answers

    @torch.inference_mode()
    def cancel(self, request: int) -> None:
        """Drop a request, and its answer if `finished` has not returned it yet; ignore unknown ids."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting.index != request)
        self._release([place for place, row in enumerate(self._rows) if row.index == request])
        self._answers = [answer for answer in self._answers if answer.index != request]

    def _release(self, places: Sequence[int]) -> list[int]:
        """Free the slots of some rows; return the previous slot of each remaining row, by its new slot."""
        old_places = self._slots.release(places)
        self._rows = [self._rows[place] for place in old_places]
        return old_places
