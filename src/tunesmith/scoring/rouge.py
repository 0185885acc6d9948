"""ROUGE (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"): F1 of a prediction and a reference.

Words are those of the package rouge-score, without stemming: runs of a-z and 0-9. References in other scripts are read
as `words.py` says.

| name | what both texts have in common | counted as |
|---|---|---|
| `rougeN` | N words in a row, for any N from 1 | Lin 2004, section 2 |
| `rougeL` | the longest common subsequence of words | section 3; by rouge-score |
| `rougeLsum` | the same, line by line | section 3.2; by rouge-score |
| `rougeW` | the same, runs of n words weighing n^1.2 | section 4; by ROUGE-1.5.5 |
| `rougeS` | two words in their order, at most 4 others between them | section 5; by ROUGE-1.5.5 |
| `rougeSU` | the same, and single words | section 5.2; by ROUGE-1.5.5 |

ROUGE-1.5.5 is what published W, S and SU were measured with. Where it differs from the article, it is followed:

* W weighs the length of a reference twice, so that n words do not reach more than a recall of n^-0.2: a text's W
  against itself is below 1. A run is one of the reference, also where other words part it in the prediction.
* SU counts each word but the last of a text. The article puts a mark before the first word instead.
* W takes lines as sentences, S and SU do not.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from tunesmith.core.progress import log
from tunesmith.scoring.lcs import lcs_length, lcs_positions
from tunesmith.scoring.word_tokenizer import WordTokenizer, word_tokenizer_for

Score = Callable[[str, str], float]
"""(prediction, reference) -> 0..1."""

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum", "rougeW", "rougeS", "rougeSU")
RUN_EXPONENT = 1.2
MAX_SKIP = 4
_SLOW_PAIRS = 100_000_000  # pairs of words; about a minute
_ROUGE_N = re.compile(r"rouge([1-9][0-9]*)")


def is_rouge(name: str) -> bool:
    """Say whether a name is a ROUGE: one of `ROUGE_NAMES`, or `rougeN` for any N."""
    return name in ROUGE_NAMES or _ROUGE_N.fullmatch(name) is not None


def rouge(name: str) -> Score:
    """Return the ROUGE of a name that `is_rouge` knows; what a word is follows from the reference's script."""
    score = _rouge(name)
    return lambda prediction, reference: score(prediction, reference, word_tokenizer_for(reference))


def _rouge(name: str) -> Callable[[str, str, WordTokenizer], float]:
    if found := _ROUGE_N.fullmatch(name):
        n = int(found[1])
        return lambda prediction, reference, words: _overlap_f1(
            _ngrams(words(prediction), n), _ngrams(words(reference), n)
        )
    if name in ("rougeS", "rougeSU"):
        each = name == "rougeSU"
        return lambda prediction, reference, words: _overlap_f1(
            _skip_bigrams(words(prediction), each), _skip_bigrams(words(reference), each)
        )
    return {"rougeW": _rouge_w, "rougeL": _rouge_l, "rougeLsum": _rouge_lsum}[name]


def _rouge_l(prediction: str, reference: str, words: WordTokenizer) -> float:
    """Return ROUGE-L, as rouge-score computes it."""
    ours, theirs = words(prediction), words(reference)
    common = lcs_length(ours, theirs)
    return _f1(common / len(ours), common / len(theirs)) if common else 0.0


def _rouge_lsum(prediction: str, reference: str, words: WordTokenizer) -> float:
    """Return ROUGE-Lsum, as rouge-score computes it: a word is a hit at most as often as both texts have it."""
    ours = [found for line in prediction.split("\n") if line and (found := words(line))]
    theirs = [found for line in reference.split("\n") if line and (found := words(line))]
    left, wanted = (Counter(word for line in lines for word in line) for lines in (ours, theirs))
    hits = 0
    for sentence in theirs:
        for place in sorted(set[int]().union(*(lcs_positions(sentence, line) for line in ours))):
            word = sentence[place]
            if left[word] > 0 and wanted[word] > 0:
                left[word] -= 1
                wanted[word] -= 1
                hits += 1
    return _f1(hits / sum(map(len, ours)), hits / sum(map(len, theirs))) if hits else 0.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _overlap_f1(ours: Counter[tuple[str, ...]], theirs: Counter[tuple[str, ...]]) -> float:
    common = (ours & theirs).total()
    return _f1(common / ours.total(), common / theirs.total()) if common else 0.0


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _skip_bigrams(words: Sequence[str], with_words: bool) -> Counter[tuple[str, ...]]:
    """Count the pairs of words with at most `MAX_SKIP` others between, and each word but the last where wanted."""
    found: Counter[tuple[str, ...]] = Counter()
    for i, word in enumerate(words[:-1]):
        found.update((word, other) for other in words[i + 1 : i + MAX_SKIP + 2])
        if with_words:
            found[(word,)] += 1
    return found


def _run_weight(length: float) -> float:
    return float(length**RUN_EXPONENT)


def _rouge_w(prediction: str, reference: str, words: WordTokenizer) -> float:
    """Return ROUGE-W. A word is a hit at most as often as the prediction has it, whichever lines it is in."""
    ours = [words(line) for line in prediction.split("\n")]
    theirs = [words(line) for line in reference.split("\n")]
    if (pairs := sum(map(len, ours)) * sum(map(len, theirs))) > _SLOW_PAIRS:
        log(f"rougeW compares {pairs / 1e6:,.0f} million pairs of words of one row, which takes minutes")
    left = Counter(word for line in ours for word in line)
    hits = 0.0
    for sentence in theirs:
        hit = set[int]().union(*(_weighted_lcs(sentence, line) for line in ours))
        run = 0
        for i in sorted(hit):
            word = sentence[i]
            if not left[word]:
                continue
            left[word] -= 1
            run += 1
            if i + 1 not in hit:
                hits += _run_weight(run)
                run = 0
    if not hits:
        return 0.0
    precision = (hits / _run_weight(sum(map(len, ours)))) ** (1 / RUN_EXPONENT)
    recall = (hits / _run_weight(sum(_run_weight(len(sentence)) for sentence in theirs))) ** (1 / RUN_EXPONENT)
    return min(1.0, _f1(precision, recall))


def _weighted_lcs(reference: Sequence[str], prediction: Sequence[str]) -> set[int]:
    """Return the places in a reference of its heaviest common subsequence with a prediction (Lin 2004, section 4)."""
    width = len(prediction) + 1
    weights, runs = [0.0] * width, [0] * width
    steps: list[str] = []  # how each cell was reached, row by row: d(iagonal), u(p) or l(eft)
    for word in reference:
        above, above_runs = weights, runs
        weights, runs = [0.0] * width, [0] * width
        row = ["u"]
        for j, other in enumerate(prediction, 1):
            if word == other:
                run = above_runs[j - 1]
                weights[j] = above[j - 1] + _run_weight(run + 1) - _run_weight(run)
                runs[j] = run + 1
                row.append("d")
            elif above[j] >= weights[j - 1]:
                weights[j] = above[j]
                row.append("u")
            else:
                weights[j] = weights[j - 1]
                row.append("l")
        steps.append("".join(row))
    found = set()
    i, j = len(reference), len(prediction)
    while i and j:
        step = steps[i - 1][j]
        i -= step != "l"
        j -= step != "u"
        if step == "d":
            found.add(i)
    return found
