"""Beam search: keep the most likely hypotheses of each answer at every step, and return the best finished one.

The score of a finished hypothesis is its log-probability, with that of the stop token, divided by the number of tokens.
The search for a row ends when no hypothesis could become better than the worst finished one that is kept. Both are the
defaults of transformers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from tunesmith.core import interrupt
from tunesmith.inference.decoding import DecodingBatch
from tunesmith.inference.request import Answer, Limits, Request

Ids = tuple[int, ...]


@dataclass(slots=True)
class _Row:
    """The search for one answer: hypotheses as (log-probability, ids), finished ones as (score, ids, stopped)."""

    index: int
    hypotheses: list[tuple[float, Ids]]
    finished: list[tuple[float, Ids, bool]] = field(default_factory=list)


def beam_search(batch: DecodingBatch, requests: Sequence[Request], beams: int) -> Iterator[Answer]:
    """Yield the answer to each request as it finishes. All have the same limits; stop strings do not end answers.

    Args:
        batch: one row per request. It is widened to `beams` consecutive rows per request.
    """
    alive, limits = [_Row(request.index, [(0.0, ())]) for request in requests], requests[0].limits
    for length in range(1, limits.max_new_tokens + 1):
        interrupt.check()
        # Each hypothesis has at most one continuation per stop id, so at least `beams` continuations do not end.
        candidates_of_rows = _likeliest(batch.logits(), alive, beams * (1 + max(1, len(limits.stop_ids))))
        remaining: list[_Row] = []
        parents: list[int] = []
        for place, (row, candidates) in enumerate(zip(alive, candidates_of_rows, strict=True)):
            first = place * len(row.hypotheses)
            row_parents = _extend(row, candidates, beams, limits)
            if not row_parents or _is_done(row, beams, length):
                _, ids, stopped = row.finished[0]
                yield Answer(row.index, ids, stopped)
                continue
            remaining.append(row)
            parents += [first + parent for parent in row_parents]
        if not remaining:
            return
        alive = remaining
        tokens = [ids[-1] for row in alive for _, ids in row.hypotheses]
        chosen = torch.tensor([parents, tokens], device=batch.device)
        batch.select_rows(chosen[0])
        batch.append(chosen[1])


def _likeliest(logits: torch.Tensor, alive: Sequence[_Row], count: int) -> list[list[tuple[float, int, int]]]:
    """Return the most likely continuations of each row as (log-probability, hypothesis, token), best first."""
    width, vocabulary = len(alive[0].hypotheses), logits.shape[-1]
    before = torch.tensor([[score for score, _ in row.hypotheses] for row in alive], device=logits.device)
    scores = logits.log_softmax(-1).view(len(alive), width, vocabulary) + before.unsqueeze(-1)
    best = scores.flatten(1).topk(min(count, width * vocabulary))
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [[(score, *divmod(place, vocabulary)) for score, place in zip(*row, strict=True)] for row in rows]


def _extend(row: _Row, candidates: list[tuple[float, int, int]], beams: int, limits: Limits) -> list[int]:
    """Divide continuations into finished answers and new hypotheses; return the parent of each new hypothesis."""
    hypotheses: list[tuple[float, Ids]] = []
    parents: list[int] = []
    for rank, (score, parent, token) in enumerate(candidates):
        before = row.hypotheses[parent][1]
        stopped = token in limits.stop_ids
        if stopped or len(before) + 1 == limits.max_new_tokens:
            if rank < beams:
                ids = before if stopped else (*before, token)
                row.finished.append((score / (len(before) + 1), ids, stopped))
        elif len(hypotheses) < beams:
            hypotheses.append((score, (*before, token)))
            parents.append(parent)
    row.finished = sorted(row.finished, key=lambda finished: -finished[0])[:beams]
    row.hypotheses = hypotheses
    return parents


def _is_done(row: _Row, beams: int, length: int) -> bool:
    """Whether the best hypothesis, if it ended now, would not beat the worst finished answer."""
    return len(row.finished) == beams and row.hypotheses[0][0] / length <= row.finished[-1][0]
