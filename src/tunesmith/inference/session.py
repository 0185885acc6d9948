"""Answer many requests on one model at the same time; each can be submitted or cancelled at any time."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count, islice, takewhile
from typing import Any

import torch

from tunesmith.architecture.base_model import require_embedding_rows
from tunesmith.core.errors import RecipeError
from tunesmith.inference.prefix_cache import PrefixCache
from tunesmith.inference.request import Answer, Limits, Request, Token, advance
from tunesmith.inference.sampling import GREEDY, Sampling
from tunesmith.inference.single_row import SingleRow
from tunesmith.inference.slots import Slots, no_adapters
from tunesmith.model.adapter_set import AdapterSet


class Session:
    """Requests on a model.

    A session shares nothing with other sessions and ignores signals. It is not thread-safe. In fp32 a request gets the
    same tokens as if it were alone. After an error in `step`, `recover` has to be called.

    Args:
        slots: number of requests that are answered at the same time, on a model that can generate in slots (see
            `slot_check.slot_budget`); None for other models, which answer one at a time. The other requests wait in the
            order of submission.
        slot_tokens: the maximum number of tokens of a prompt with its answer.
        prefix: tokens that are read once for all prompts that begin with them; other prompts are allowed.
        prefixes: beginnings of earlier requests, which are read once; the session adds to them.
        adapters: the set that `model` belongs to, if requests have adapters. The session decides which one is active.
        interleave: run a decoding step between two passes that read prompts, so that reading many of them, or a long
            one, delays the answers of others by one pass only.
    """

    def __init__(
        self,
        model: Any,
        *,
        slots: int | None,
        slot_tokens: int,
        prefix: Sequence[int] = (),
        prefixes: PrefixCache | None = None,
        adapters: AdapterSet | None = None,
        interleave: bool = False,
    ) -> None:
        self._model, self._slot_tokens, self._adapters, self._prefixes = model, slot_tokens, adapters, prefixes
        self._interleave, self._has_read = interleave, False
        self._ids = count()
        self._waiting: deque[Request] = deque()
        self._rows: list[Request] = []  # in the order of their slots
        self._answers: list[Answer] = []
        self._in_pass: list[Request] = []
        self._tokens: list[tuple[int, Token]] = []
        self._open_rows(slots, prefix)

    @torch.inference_mode()
    def _open_rows(self, slots: int | None, prefix: Sequence[int] = ()) -> None:
        select = self._adapters.select if self._adapters else no_adapters
        self._slots: Slots | SingleRow
        if slots is None:
            self._slots = SingleRow(self._model, select)
        else:
            self._slots = Slots(
                self._model, slots=slots, slot_tokens=self._slot_tokens, prefix=prefix, prefixes=self._prefixes,
                select_adapters=select,
            )  # fmt: skip

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or being answered."""
        return bool(self._waiting or self._rows)

    @property
    def running(self) -> int:
        """The number of requests that are being answered."""
        return len(self._rows)

    def submit(self, prompt: Sequence[int], limits: Limits, sampling: Sampling = GREEDY) -> int:
        """Add a request; return its id. Raises the errors of `add`."""
        request = Request(next(self._ids), prompt, limits, sampling)
        self.add(request)
        return request.index

    def add(self, request: Request) -> None:
        """Add a request whose index is its id, which no other request has.

        Raises:
            RecipeError: the prompt is empty, does not fit in a slot with its answer, or has tokens beyond the model's
                embedding; or it belongs to an encoder and has to be scored.
        """
        self.check(request)
        self._waiting.append(request)

    def check(self, request: Request) -> None:
        """Raise the errors of `add`. Can be called from any thread."""
        prompt, limits = request.prompt, request.limits
        if not prompt:
            raise RecipeError("the prompt is empty", code="empty-prompt", hint="give it at least one token")
        if request.needs_prompt_scores and request.decoder_prefix_ids:
            message = "the prompt of an encoder-decoder model has no log-probabilities"
            raise RecipeError(message, code="no-effect", hint="ask for those of the answer only")
        written = len(request.decoder_prefix_ids) + limits.max_new_tokens
        longest = max(len(prompt), written) if request.decoder_prefix_ids else len(prompt) + written
        if longest > self._slot_tokens:
            message = f"prompt plus `max_new_tokens` is {longest} tokens, but a slot holds only {self._slot_tokens}"
            hint = "shorten the prompt, lower max_new_tokens, or open the session with more slot_tokens"
            raise RecipeError(message, code="prompt-too-long", hint=hint)
        require_embedding_rows(max(prompt), self._vocabulary(request), where="prompt")

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Token]]:
        """Run one forward pass: read waiting prompts if a slot is free, else generate one token for every request.

        Returns:
            (id of the request, new token) without stop tokens; empty if the pass read prompts.
        """
        admissible = list(self._admissible())
        if admissible and not (self._interleave and self._has_read and self._rows):
            self._in_pass = admissible
            admitted = self._slots.admit(admissible)
            self._has_read = self._slots.has_read
            self._rows += [self._waiting.popleft() for _ in range(admitted)]
        elif self._rows:
            self._has_read, self._in_pass = False, list(self._rows)
            self._decode()
        tokens, self._tokens = self._tokens, []
        return tokens

    def _admissible(self) -> Iterator[Request]:
        """Yield the waiting requests that a pass may read, as many as slots are free.

        Adapters that cannot share a batch wait until the rows of others have been answered.
        """
        if not self._waiting or not self._slots.free:
            return
        group = self._group(self._rows[0] if self._rows else self._waiting[0])
        waiting = islice(self._waiting, self._slots.free)
        yield from takewhile(lambda request: self._group(request) == group, waiting)

    def _decode(self) -> None:
        logits = self._slots.logits()
        for place, row in enumerate(self._rows if self._adapters else ()):
            logits[place, self._vocabulary(row) :] = -torch.inf  # tokens that other adapters have added
        tokens, answers = advance(self._rows, logits)
        pairs = [(row, token) for row, token in zip(self._rows, tokens, strict=True) if not row.ends_with(token.id)]
        self._tokens += [(row.index, token) for row, token in pairs]
        self._answers += [answer for answer in answers if answer is not None]
        old_places = self._release([place for place, answer in enumerate(answers) if answer is not None])
        self._slots.append([tokens[place].id for place in old_places])

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

    def recover(self, slots: int | None) -> list[Request]:
        """Go on after an error in `step`, with an empty cache: requests wait again, and continue after their tokens.

        Args:
            slots: the new number of slots.

        Returns:
            The requests of the pass that failed. They wait again as well.
        """
        failed, self._in_pass = self._in_pass, []
        answered = {answer.index for answer in self._answers}
        self._waiting.extendleft(row for row in reversed(self._rows) if row.index not in answered)
        self._rows = []
        if self._prefixes is not None:
            self._prefixes.clear()
        self._open_rows(slots)
        return failed

    def _release(self, places: Sequence[int]) -> list[int]:
        """Free the slots of some rows; return the previous slot of each remaining row, by its new slot."""
        old_places = self._slots.release(places)
        self._rows = [self._rows[place] for place in old_places]
        return old_places

    def _group(self, request: Request) -> str | None:
        return self._adapters.group(request.adapter) if self._adapters else None

    def _vocabulary(self, request: Request) -> int:
        if self._adapters:
            return self._adapters.vocabulary(request.adapter)
        return int(self._model.get_input_embeddings().weight.shape[0])
