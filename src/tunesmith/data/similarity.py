"""Which texts nearly repeat others: MinHash over runs of words, candidates by banding, then the exact Jaccard index.

Resemblance and MinHash are Broder's (1997, "On the resemblance and containment of documents"); banding is in Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3. A signature is the minimum of each of 128 multiply-shift
hashes (Dietzfelbinger et al. 1997). They are fixed, so the same texts give the same answer everywhere.
"""

import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.split import normalize_text

SHINGLE_WORDS = 3
NUM_HASHES = 128
# Runs that more than this part of all texts share belong to a template: that two texts have them says nothing.
COMMON_FRACTION = 0.1
COMMON_MIN_TEXTS = 10
# With fewer runs of their own, texts are too short for a likeness to mean anything.
MIN_SHINGLES = 6

# Scripts without blanks are taken character by character. Marks are words too, since a < b is not a > b.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")
_BUCKETS = 2**22
_LOW_BITS = np.uint32(_BUCKETS - 1)
_RUNS_AT_ONCE = 2**22
_FOUND = 0.99  # of the pairs that are just as similar as asked for
_CANDIDATES = 50  # taken from one bucket of one band
_COMPARED = 4  # candidates of one text that are compared exactly, the likeliest first
_ASKED_AT_ONCE = 256
_PAIRS_AT_ONCE = 2**15
_MARGIN = 0.15  # by which an estimate from 128 hashes may be too low: four standard deviations at 0.8

_RANDOM = np.random.Generator(np.random.Philox(1997))
_FACTORS = _RANDOM.integers(0, 2**63, NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SUMMANDS = _RANDOM.integers(0, 2**63, NUM_HASHES, dtype=np.uint64)
_HALF = np.uint64(32)

Places = NDArray[np.int64]


class ShingleIndex:
    """The runs of words of texts, kept as the texts come by: one 32-bit hash a run."""

    def __init__(self) -> None:
        self._flat = array("I")
        self._offsets = array("Q", [0])

    def add(self, runs: bytes) -> int:
        """Keep what `shingles` returned for a text; return its place."""
        self._flat.frombytes(runs)
        self._offsets.append(len(self._flat))
        return len(self._offsets) - 2

    def of(self, places: Sequence[int]) -> tuple[NDArray[np.uint32], Places]:
        """Return the runs of texts one behind the other, and where each text's begin, and end."""
        flat, offsets = np.frombuffer(self._flat, np.uint32), np.frombuffer(self._offsets, np.uint64).astype(np.int64)
        wanted = np.asarray(places, np.int64)
        begins, ends = offsets[wanted], offsets[wanted + 1]
        found = np.concatenate([np.zeros(0, np.uint32), *(flat[i:j] for i, j in zip(begins, ends, strict=True))])
        return found, np.concatenate([[0], np.cumsum(ends - begins)])


class MinHashIndex:
    """Texts as sets of runs of words; what is kept is 4 bytes a word and 512 a text."""

    def __init__(self, texts: Iterable[str]) -> None:
        runs = ShingleIndex()
        self._keep(*runs.of([runs.add(shingles(text)) for text in texts]))

    @classmethod
    def among(cls, runs: ShingleIndex, places: Sequence[int]) -> "MinHashIndex":
        """Return the texts at some places of those whose runs are kept."""
        made = cls.__new__(cls)
        made._keep(*runs.of(places))
        return made

    def _keep(self, runs: NDArray[np.uint32], offsets: Places) -> None:
        # Counted in buckets of their low bits: what else falls into a bucket is too little to make a run look common.
        counts = np.zeros(_BUCKETS, np.int64)
        parts = [slice(first, first + _RUNS_AT_ONCE) for first in range(0, len(runs), _RUNS_AT_ONCE)]
        for part in parts:
            counts += np.bincount(runs[part] & _LOW_BITS, minlength=_BUCKETS)
        own = counts <= max(COMMON_MIN_TEXTS, COMMON_FRACTION * (len(offsets) - 1))
        mine = np.zeros(len(runs), bool)
        before, so_far = np.zeros(len(offsets), np.int64), 0  # how many own runs stand before each text
        for part in parts:
            mine[part] = own[runs[part] & _LOW_BITS]
            counts = so_far + np.cumsum(mine[part])
            first, last = np.searchsorted(offsets, [part.start, part.stop], "right")
            before[first:last] = counts[offsets[first:last] - part.start - 1]
            so_far = int(counts[-1])
        self._runs: NDArray[np.uint32] = runs[mine]
        self._offsets: Places = before

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def runs(self, place: int) -> NDArray[np.uint32]:
        """Return the hashes of a text's own runs, ascending."""
        found: NDArray[np.uint32] = self._runs[self._offsets[place] : self._offsets[place + 1]]
        return found

    def jaccard(self, one: int, other: int) -> float:
        """Return the Jaccard index of two texts: which part of all their runs they share."""
        a, b = self.runs(one), self.runs(other)
        both = np.concatenate([a, b])
        both.sort()
        shared = int(np.count_nonzero(both[1:] == both[:-1]))
        return shared / max(1, len(a) + len(b) - shared)

    @cached_property
    def signatures(self) -> NDArray[np.uint32]:
        """The MinHash signature of every text, [texts, HASHES]; of those that are too short it is not used."""
        found = np.zeros((len(self), NUM_HASHES), np.uint32)
        for place in range(len(self)):
            runs = self.runs(place).astype(np.uint64)
            if len(runs):
                found[place] = ((runs[:, None] * _FACTORS + _SUMMANDS) >> _HALF).min(axis=0)
        return found

    def long_enough(self, places: Sequence[int]) -> Places:
        """Return those of the places whose texts have enough runs of their own to be compared."""
        wanted = np.asarray(places, np.int64)
        found: Places = wanted[np.diff(self._offsets)[wanted] >= MIN_SHINGLES]
        return found

    def nearest(self, asked: Sequence[int], among: Sequence[int], threshold: float) -> dict[int, tuple[int, float]]:
        """Return {place: (place of a most similar text, similarity)} for the texts asked about that have one.

        Args:
            asked: places of texts.
            among: places of the texts to look in, ascending; a text that is in both is compared with those before it.
            threshold: least Jaccard index. Of pairs just at it 1 in 100 may be missed, of more similar ones fewer.
        """
        pool, questions = self.long_enough(among), self.long_enough(asked)
        bands = [_Band(self.signatures, columns, pool) for columns in _bands(threshold)] if len(pool) else []
        twice = np.isin(questions, pool)
        found: dict[int, tuple[int, float]] = {}
        for first in range(0, len(questions), _ASKED_AT_ONCE):
            some = slice(first, first + _ASKED_AT_ONCE)
            for place, candidates in self._likely(questions[some], twice[some], bands, threshold):
                best = max(((self.jaccard(place, one), -one) for one in candidates), default=(0.0, 0))
                if best[0] >= threshold:
                    found[place] = -best[1], best[0]
        return found

    def _likely(
        self, questions: Places, twice: NDArray[np.bool_], bands: Sequence["_Band"], threshold: float
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (place, places that seem similar enough, the likeliest first)."""
        pairs = [band.pairs(self.signatures, questions) for band in bands]
        if not pairs:
            return
        of, one = np.concatenate(pairs, axis=1)
        # As one number each, since sorting pairs is slow.
        which, candidate = np.divmod(np.unique(of * len(self) + one), len(self))
        allowed = ~twice[which] | (candidate < questions[which])
        which, candidate = which[allowed], candidate[allowed]
        estimates = np.empty(len(which))
        for first in range(0, len(which), _PAIRS_AT_ONCE):
            part = slice(first, first + _PAIRS_AT_ONCE)
            equal = self.signatures[questions[which[part]]] == self.signatures[candidate[part]]
            estimates[part] = equal.mean(axis=1)
        order = np.lexsort((candidate, -estimates, which))
        order = order[estimates[order] >= threshold - _MARGIN]
        starts = np.searchsorted(which[order], np.arange(len(questions) + 1))
        for i, place in enumerate(questions):
            likely = order[starts[i] : min(starts[i + 1], starts[i] + _COMPARED)]
            if len(likely):
                yield int(place), candidate[likely].tolist()


class _Band:
    """Some columns of all signatures: texts that agree in all of them are in one bucket."""

    def __init__(self, signatures: NDArray[np.uint32], columns: slice, pool: Places) -> None:
        self._columns = columns
        keys = self._keys(signatures, pool)
        order = np.argsort(keys, kind="stable")
        self._sorted, self._places = keys[order], pool[order]

    def _keys(self, signatures: NDArray[np.uint32], places: Places) -> NDArray[np.uint64]:
        columns = signatures[places, self._columns]
        keys: NDArray[np.uint64] = (columns * _FACTORS[self._columns]).sum(axis=1, dtype=np.uint64)
        return keys

    def pairs(self, signatures: NDArray[np.uint32], questions: Places) -> Places:
        """Return the pairs (index in questions, place in the pool) that share a bucket, [2, pairs]."""
        keys = self._keys(signatures, questions)
        first, end = (np.searchsorted(self._sorted, keys, side) for side in ("left", "right"))
        counts = np.minimum(end - first, _CANDIDATES)
        which = np.repeat(np.arange(len(questions)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack([which, self._places[first[which] + within]])


def _bands(threshold: float) -> list[slice]:
    """Return the columns of each band: as wide as they may be for pairs at the threshold still to be found."""
    for width in range(NUM_HASHES, 0, -1):
        count = NUM_HASHES // width
        if 1 - (1 - threshold**width) ** count >= _FOUND:
            return [slice(i * width, (i + 1) * width) for i in range(count)]
    return [slice(i, i + 1) for i in range(NUM_HASHES)]


def shingles(text: str) -> bytes:
    """Return the distinct runs of SHINGLE_WORDS words, hashed to 4 bytes each, ascending."""
    words = " ".join(_WORD.findall(normalize_text(text))).encode("utf-8", "surrogatepass").split()
    hashed = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    count = len(words) - SHINGLE_WORDS + 1
    if count <= 0:
        return b""
    mixed = sum(hashed[i : i + count] * _FACTORS[i] for i in range(SHINGLE_WORDS))
    runs: NDArray[np.uint32] = (np.asarray(mixed, np.uint64) >> _HALF).astype(np.uint32)
    runs.sort()
    distinct: NDArray[np.uint32] = runs[np.concatenate([[True], runs[1:] != runs[:-1]])]
    return distinct.tobytes()
