"""Find near-duplicate texts: MinHash over word shingles, candidates by banding, then the exact Jaccard index.

MinHash is from Broder (1997, "On the resemblance and containment of documents"), and banding from Leskovec, Rajaraman
and Ullman, "Mining of Massive Datasets", chapter 3. A signature is the minimum of each of 128 multiply-shift hashes
(Dietzfelbinger et al. 1997). The hashes are fixed, so the same texts give the same result everywhere.
"""

import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.split import normalize_text

SHINGLE_WORDS = 3
NUM_HASHES = 128
# Shingles in more than this fraction of all texts belong to a template, so sharing them is no sign of similarity.
COMMON_FRACTION = 0.1
COMMON_MIN_TEXTS = 10
# Texts with fewer shingles, without the common ones, are too short for a meaningful similarity.
MIN_SHINGLES = 6

# In scripts without spaces every character is a word. Punctuation marks are words too, since a < b is not a > b.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")
_BUCKETS = 2**22
_LOW_BITS = np.uint32(_BUCKETS - 1)
_SHINGLES_PER_CHUNK = 2**22
_RECALL = 0.99  # for pairs exactly at the threshold
_MAX_CANDIDATES = 50  # per bucket of a band
_MAX_COMPARED = 4  # candidates per text whose Jaccard index is computed, the most similar estimates first
_QUERIES_PER_CHUNK = 256
_PAIRS_PER_CHUNK = 2**15
_MARGIN = 0.15  # how far an estimate from 128 hashes may be too low: four standard deviations at 0.8

_RANDOM = np.random.Generator(np.random.Philox(1997))
_FACTORS = _RANDOM.integers(0, 2**63, NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SUMMANDS = _RANDOM.integers(0, 2**63, NUM_HASHES, dtype=np.uint64)
_HALF = np.uint64(32)

Indices = NDArray[np.int64]


class ShingleIndex:
    """The shingles of texts, added one text at a time: a 32-bit hash for each shingle."""

    def __init__(self) -> None:
        self._flat = array("I")
        self._offsets = array("Q", [0])

    def add(self, text_shingles: bytes) -> int:
        """Add the result of `shingles` for a text; return the index of the text."""
        self._flat.frombytes(text_shingles)
        self._offsets.append(len(self._flat))
        return len(self._offsets) - 2

    def select(self, indices: Sequence[int]) -> tuple[NDArray[np.uint32], Indices]:
        """Return the concatenated shingles of some texts, and the offset of each text [texts + 1]."""
        flat, offsets = np.frombuffer(self._flat, np.uint32), np.frombuffer(self._offsets, np.uint64).astype(np.int64)
        selected = np.asarray(indices, np.int64)
        starts, ends = offsets[selected], offsets[selected + 1]
        hashes = np.concatenate([np.zeros(0, np.uint32), *(flat[i:j] for i, j in zip(starts, ends, strict=True))])
        return hashes, np.concatenate([[0], np.cumsum(ends - starts)])


class MinHashIndex:
    """Some texts of a ShingleIndex, without the shingles that are common to many of them.

    It keeps 4 bytes per word and 512 bytes per text.
    """

    def __init__(self, shingle_index: ShingleIndex, indices: Sequence[int]) -> None:
        hashes, offsets = shingle_index.select(indices)
        # Shingles are counted in buckets of their low bits. Collisions are too few to make a rare shingle look common.
        counts = np.zeros(_BUCKETS, np.int64)
        chunks = [slice(start, start + _SHINGLES_PER_CHUNK) for start in range(0, len(hashes), _SHINGLES_PER_CHUNK)]
        for chunk in chunks:
            counts += np.bincount(hashes[chunk] & _LOW_BITS, minlength=_BUCKETS)
        is_rare_bucket = counts <= max(COMMON_MIN_TEXTS, COMMON_FRACTION * (len(offsets) - 1))
        is_rare = np.zeros(len(hashes), bool)
        for chunk in chunks:
            is_rare[chunk] = is_rare_bucket[hashes[chunk] & _LOW_BITS]
        self._hashes: NDArray[np.uint32] = hashes[is_rare]
        sizes = [int(np.count_nonzero(is_rare[start:end])) for start, end in pairwise(offsets)]
        self._offsets: Indices = np.cumsum([0, *sizes], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def shingles(self, index: int) -> NDArray[np.uint32]:
        """Return the hashes of a text's shingles, ascending and without the common ones."""
        hashes: NDArray[np.uint32] = self._hashes[self._offsets[index] : self._offsets[index + 1]]
        return hashes

    def jaccard(self, first: int, second: int) -> float:
        """Return the Jaccard index of two texts: the fraction of their shingles that both have."""
        a, b = self.shingles(first), self.shingles(second)
        both = np.concatenate([a, b])
        both.sort()
        shared = int(np.count_nonzero(both[1:] == both[:-1]))
        return shared / max(1, len(a) + len(b) - shared)

    @cached_property
    def signatures(self) -> NDArray[np.uint32]:
        """The MinHash signature of every text [texts, NUM_HASHES]; zeros for texts without shingles."""
        signatures = np.zeros((len(self), NUM_HASHES), np.uint32)
        for index in range(len(self)):
            hashes = self.shingles(index).astype(np.uint64)
            if len(hashes):
                signatures[index] = ((hashes[:, None] * _FACTORS + _SUMMANDS) >> _HALF).min(axis=0)
        return signatures

    def long_enough(self, indices: Sequence[int]) -> Indices:
        """Return the indices of the texts with at least MIN_SHINGLES shingles."""
        return np.array([i for i in indices if self._offsets[i + 1] - self._offsets[i] >= MIN_SHINGLES], np.int64)

    def nearest(self, queries: Sequence[int], pool: Sequence[int], threshold: float) -> dict[int, tuple[int, float]]:
        """Return {query: (most similar text in the pool, similarity)}, for queries with a similar enough text.

        Args:
            queries: indices of texts.
            pool: ascending indices of texts; a query that is also in the pool is compared with the texts before it.
            threshold: the minimum Jaccard index. About 1 % of the pairs exactly at it are missed, and fewer above it.
        """
        long_pool, long_queries = self.long_enough(pool), self.long_enough(queries)
        bands = [_Band(self.signatures, columns, long_pool) for columns in _bands(threshold)]
        in_pool = np.isin(long_queries, long_pool)
        nearest: dict[int, tuple[int, float]] = {}
        for start in range(0, len(long_queries), _QUERIES_PER_CHUNK):
            chunk = slice(start, start + _QUERIES_PER_CHUNK)
            for query, candidates in self._candidates(long_queries[chunk], in_pool[chunk], bands, threshold):
                similarity, negative = max((self.jaccard(query, text), -text) for text in candidates)
                if similarity >= threshold:
                    nearest[query] = -negative, similarity
        return nearest

    def _candidates(
        self, queries: Indices, in_pool: NDArray[np.bool_], bands: Sequence["_Band"], threshold: float
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield each query with the texts that seem similar enough, the highest estimates first."""
        query_numbers, texts = np.concatenate([band.pairs(self.signatures, queries) for band in bands], axis=1)
        # Each pair is encoded as one number, because sorting pairs is slow.
        which, candidate = np.divmod(np.unique(query_numbers * len(self) + texts), len(self))
        allowed = ~in_pool[which] | (candidate < queries[which])
        which, candidate = which[allowed], candidate[allowed]
        estimates = np.empty(len(which))
        for start in range(0, len(which), _PAIRS_PER_CHUNK):
            chunk = slice(start, start + _PAIRS_PER_CHUNK)
            equal = self.signatures[queries[which[chunk]]] == self.signatures[candidate[chunk]]
            estimates[chunk] = equal.mean(axis=1)
        order = np.lexsort((candidate, -estimates, which))
        order = order[estimates[order] >= threshold - _MARGIN]
        starts = np.searchsorted(which[order], np.arange(len(queries) + 1))
        for i, query in enumerate(queries):
            best = order[starts[i] : min(starts[i + 1], starts[i] + _MAX_COMPARED)]
            if len(best):
                yield int(query), candidate[best].tolist()


class _Band:
    """Some columns of all signatures: texts that agree in all of them are in the same bucket."""

    def __init__(self, signatures: NDArray[np.uint32], columns: slice, pool: Indices) -> None:
        self._columns = columns
        keys = self._keys(signatures, pool)
        order = np.argsort(keys, kind="stable")
        self._sorted_keys, self._texts = keys[order], pool[order]

    def _keys(self, signatures: NDArray[np.uint32], indices: Indices) -> NDArray[np.uint64]:
        columns = signatures[indices, self._columns]
        keys: NDArray[np.uint64] = (columns * _FACTORS[self._columns]).sum(axis=1, dtype=np.uint64)
        return keys

    def pairs(self, signatures: NDArray[np.uint32], queries: Indices) -> Indices:
        """Return the pairs (position in `queries`, text of the pool) that share a bucket [2, pairs]."""
        keys = self._keys(signatures, queries)
        first, end = (np.searchsorted(self._sorted_keys, keys, side) for side in ("left", "right"))
        counts = np.minimum(end - first, _MAX_CANDIDATES)
        which = np.repeat(np.arange(len(queries)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack([which, self._texts[first[which] + within]])


def _bands(threshold: float) -> list[slice]:
    """Return the columns of each band: the widest bands that still find pairs at the threshold with _RECALL."""
    recall = {width: 1 - (1 - threshold**width) ** (NUM_HASHES // width) for width in range(NUM_HASHES, 0, -1)}
    width = next((width for width in recall if recall[width] >= _RECALL), 1)
    return [slice(i * width, (i + 1) * width) for i in range(NUM_HASHES // width)]


def shingles(text: str) -> bytes:
    """Return the distinct shingles of SHINGLE_WORDS words, ascending, as the bytes of 32-bit hashes."""
    words = " ".join(_WORD.findall(normalize_text(text))).encode("utf-8", "surrogatepass").split()
    word_hashes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    count = len(words) - SHINGLE_WORDS + 1
    if count <= 0:
        return b""
    mixed = sum(word_hashes[i : i + count] * _FACTORS[i] for i in range(SHINGLE_WORDS))
    hashes: NDArray[np.uint32] = (np.asarray(mixed, np.uint64) >> _HALF).astype(np.uint32)
    hashes.sort()
    distinct: NDArray[np.uint32] = hashes[np.concatenate([[True], hashes[1:] != hashes[:-1]])]
    return distinct.tobytes()
