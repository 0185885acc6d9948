"""Beam search: at every step the likeliest beginnings of each answer are kept, and the best finished one wins.

A finished answer's score is its log-probability, its stop token's included, divided by their number. A row is done when
no beginning could still become better than the worst of its kept answers: both as transformers has it by default.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from tunesmith.core import interrupt
from tunesmith.inference.decoding import Decoding

Ids = tuple[int, ...]


@dataclass(slots=True)
class _Row:
    """The search for one answer: (log-probability, ids) of its beginnings, (score, ids, stopped) of finished ones."""

    index: int
    beginnings: list[tuple[float, Ids]]
    finished: list[tuple[float, Ids, bool]] = field(default_factory=list)


def beam_search(
    state: Decoding, rows: int, *, beams: int, stop_ids: Sequence[int], max_new_tokens: int
) -> Iterator[tuple[int, Ids, bool]]:
    """Yield (row, ids, whether it stopped by itself) as rows finish.

    Args:
        state: one row a prompt; it is widened to `beams` rows a prompt, which lie together.
    """
    alive = [_Row(index, [(0.0, ())]) for index in range(rows)]
    for length in range(1, max_new_tokens + 1):
        interrupt.check()
        # At most one continuation of each beginning ends at each stop id, so `beams` that go on are always found.
        found = _likeliest(state.logits(), alive, beams * (1 + max(1, len(stop_ids))))
        going: list[_Row] = []
        parents: list[int] = []
        for place, (row, candidates) in enumerate(zip(alive, found, strict=True)):
            first = place * len(row.beginnings)
            kept = _step(row, candidates, beams, stop_ids, at_limit=length == max_new_tokens)
            if not kept or _is_done(row, beams, length):
                _, ids, stopped = row.finished[0]
                yield row.index, ids, stopped
                continue
            going.append(row)
            parents += [first + parent for parent in kept]
        if not going:
            return
        alive = going
        tokens = [ids[-1] for row in alive for _, ids in row.beginnings]
        chosen = torch.tensor([parents, tokens], device=state.device)
        state.take(chosen[0])
        state.choose(chosen[1])


def _likeliest(logits: torch.Tensor, alive: Sequence[_Row], count: int) -> list[list[tuple[float, int, int]]]:
    """Return the likeliest continuations of each row as (log-probability, beginning, token), best first."""
    width, vocabulary = len(alive[0].beginnings), logits.shape[-1]
    before = torch.tensor([[score for score, _ in row.beginnings] for row in alive], device=logits.device)
    scores = logits.log_softmax(-1).view(len(alive), width, vocabulary) + before.unsqueeze(-1)
    best = scores.flatten(1).topk(min(count, width * vocabulary))
    return [
        [(score, place // vocabulary, place % vocabulary) for score, place in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _step(
    row: _Row, candidates: list[tuple[float, int, int]], beams: int, stop_ids: Sequence[int], *, at_limit: bool
) -> list[int]:
    """Sort continuations into finished answers and new beginnings; return which beginning each of these comes from."""
    beginnings: list[tuple[float, Ids]] = []
    parents: list[int] = []
    for rank, (score, parent, token) in enumerate(candidates):
        before = row.beginnings[parent][1]
        stopped = token in stop_ids
        if stopped or at_limit:
            if rank < beams:
                ids = before if stopped else (*before, token)
                row.finished.append((score / (len(before) + 1), ids, stopped))
        elif len(beginnings) < beams:
            beginnings.append((score, (*before, token)))
            parents.append(parent)
    row.finished = sorted(row.finished, key=lambda one: -one[0])[:beams]
    row.beginnings = beginnings
    return parents


def _is_done(row: _Row, beams: int, length: int) -> bool:
    """Say whether the likeliest beginning, were it to end now, is no better than the worst finished answer."""
    return len(row.finished) == beams and row.beginnings[0][0] / length <= row.finished[-1][0]
