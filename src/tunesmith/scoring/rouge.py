"""ROUGE (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"): F1 of a prediction and a reference.

Text is split into words as in the package rouge-score, without stemming: runs of a-z and 0-9. For references in other
scripts see `word_tokenizer.py`.

| name | units of overlap | definition |
|---|---|---|
| `rougeN` | n-grams of N words, for any N from 1 | Lin 2004, section 2 |
| `rougeL` | the longest common subsequence (LCS) of words | section 3; as in rouge-score |
| `rougeLsum` | the LCS of each line | section 3.2; as in rouge-score |
| `rougeW` | the LCS of each line, where a run of n words weighs n^1.2 | section 4; as in ROUGE-1.5.5 |
| `rougeS` | skip-bigrams: two words in order with at most 4 words between them | section 5; as in ROUGE-1.5.5 |
| `rougeSU` | skip-bigrams and single words | section 5.2; as in ROUGE-1.5.5 |

Published W, S and SU were measured with the program ROUGE-1.5.5. This module follows it in its differences from the
paper:

* W applies the weight to the length of a reference twice, so n words have a recall of at most n^-0.2, and the W of a
  text with itself is below 1. Runs are counted in the reference, even if other words separate them in the prediction.
* SU counts every word of a text except the last one. The paper adds a start marker instead.
* W treats lines as sentences; S and SU do not.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from tunesmith.core.progress import log
from tunesmith.scoring.lcs import lcs_length, lcs_positions
from tunesmith.scoring.word_tokenizer import WordTokenizer, word_tokenizer_for

Score = Callable[[str, str], float]
"""(prediction, reference) -> 0..1."""

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum", "rougeW", "rougeS", "rougeSU")
RUN_EXPONENT = 1.2
MAX_SKIP = 4
_SLOW_PAIRS = 100_000_000  # pairs of words, which take about a minute
_ROUGE_N = re.compile(r"rouge([1-9][0-9]*)")


def is_rouge(name: str) -> bool:
    """Return whether a name is a ROUGE metric: one of `ROUGE_NAMES`, or `rougeN` for any N."""
    return name in ROUGE_NAMES or _ROUGE_N.fullmatch(name) is not None


def rouge(name: str) -> Score:
    """Return the scoring function of a ROUGE metric. It splits both texts according to the reference's script."""
    score = _rouge(name)
    return lambda prediction, reference: score(prediction, reference, word_tokenizer_for(reference))


def _rouge(name: str) -> Callable[[str, str, WordTokenizer], float]:
    if match := _ROUGE_N.fullmatch(name):
        units = partial(_ngrams, n=int(match[1]))
    elif name in ("rougeS", "rougeSU"):
        units = partial(_skip_bigrams, with_unigrams=name == "rougeSU")
    else:
        return {"rougeW": _rouge_w, "rougeL": _rouge_l, "rougeLsum": _rouge_lsum}[name]
    return lambda prediction, reference, words: _overlap_f1(units(words(prediction)), units(words(reference)))


def _rouge_l(prediction: str, reference: str, words: WordTokenizer) -> float:
    """Return ROUGE-L as rouge-score computes it."""
    predicted, expected = words(prediction), words(reference)
    common = lcs_length(predicted, expected)
    return _f1(common / len(predicted), common / len(expected)) if common else 0.0


def _rouge_lsum(prediction: str, reference: str, words: WordTokenizer) -> float:
    """Return ROUGE-Lsum as rouge-score computes it: a word is a hit at most as often as it occurs in both texts."""
    predicted = [split for line in prediction.split("\n") if line and (split := words(line))]
    expected = [split for line in reference.split("\n") if line and (split := words(line))]
    unused, missing = (Counter(word for line in lines for word in line) for lines in (predicted, expected))
    hits = 0
    for sentence in expected:
        for position in sorted(set[int]().union(*(lcs_positions(sentence, line) for line in predicted))):
            word = sentence[position]
            if unused[word] > 0 and missing[word] > 0:
                unused[word] -= 1
                missing[word] -= 1
                hits += 1
    return _f1(hits / sum(map(len, predicted)), hits / sum(map(len, expected))) if hits else 0.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _overlap_f1(predicted: Counter[tuple[str, ...]], expected: Counter[tuple[str, ...]]) -> float:
    common = (predicted & expected).total()
    return _f1(common / predicted.total(), common / expected.total()) if common else 0.0


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _skip_bigrams(words: Sequence[str], with_unigrams: bool) -> Counter[tuple[str, ...]]:
    """Count pairs of words with at most `MAX_SKIP` words between them; optionally every word except the last, too."""
    counts: Counter[tuple[str, ...]] = Counter()
    for i, word in enumerate(words[:-1]):
        counts.update((word, other) for other in words[i + 1 : i + MAX_SKIP + 2])
        if with_unigrams:
            counts[(word,)] += 1
    return counts


def _run_weight(length: float) -> float:
    return float(length**RUN_EXPONENT)


def _rouge_w(prediction: str, reference: str, words: WordTokenizer) -> float:
    """Return ROUGE-W. A word is a hit at most as often as it occurs in all lines of the prediction."""
    predicted = [words(line) for line in prediction.split("\n")]
    expected = [words(line) for line in reference.split("\n")]
    if (pairs := sum(map(len, predicted)) * sum(map(len, expected))) > _SLOW_PAIRS:
        log(f"rougeW compares {pairs / 1e6:,.0f} million pairs of words in one row, which takes minutes")
    unused = Counter(word for line in predicted for word in line)
    hits = 0.0
    for sentence in expected:
        positions = set[int]().union(*(_weighted_lcs(sentence, line) for line in predicted))
        run = 0
        for i in sorted(positions):
            word = sentence[i]
            if not unused[word]:
                continue
            unused[word] -= 1
            run += 1
            if i + 1 not in positions:
                hits += _run_weight(run)
                run = 0
    if not hits:
        return 0.0
    precision = (hits / _run_weight(sum(map(len, predicted)))) ** (1 / RUN_EXPONENT)
    recall = (hits / _run_weight(sum(_run_weight(len(sentence)) for sentence in expected))) ** (1 / RUN_EXPONENT)
    return min(1.0, _f1(precision, recall))


def _weighted_lcs(reference: Sequence[str], prediction: Sequence[str]) -> set[int]:
    """Return the positions in a reference of its weighted LCS with a prediction (Lin 2004, section 4)."""
    width = len(prediction) + 1
    weights, runs = [0.0] * width, [0] * width
    steps: list[str] = []  # per row of the table, the step to each cell: d(iagonal), u(p) or l(eft)
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
    positions = set()
    i, j = len(reference), len(prediction)
    while i and j:
        step = steps[i - 1][j]
        i -= step != "l"
        j -= step != "u"
        if step == "d":
            positions.add(i)
    return positions
