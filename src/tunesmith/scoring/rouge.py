"""ROUGE (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"): F1 of a prediction and a reference.

Words are those of the package rouge-score, without stemming: runs of a-z and 0-9, so text in other scripts scores 0.

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

Score = Callable[[str, str], float]
"""(prediction, reference) -> 0..1."""

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum", "rougeW", "rougeS", "rougeSU")
WEIGHT = 1.2
SKIP = 4
_N = re.compile(r"rouge([1-9][0-9]*)")


def is_rouge(name: str) -> bool:
    """Say whether a name is a ROUGE: one of `ROUGE_NAMES`, or `rougeN` for any N."""
    return name in ROUGE_NAMES or _N.fullmatch(name) is not None


def rouge(name: str) -> Score:
    """Return the ROUGE of a name that `is_rouge` knows."""
    if found := _N.fullmatch(name):
        n = int(found[1])
        return lambda prediction, reference: _overlap(_ngrams(prediction, n), _ngrams(reference, n))
    if name == "rougeW":
        return _weighted
    if name in ("rougeS", "rougeSU"):
        words = name == "rougeSU"
        return lambda prediction, reference: _overlap(_pairs(prediction, words), _pairs(reference, words))
    return _by_rouge_score(name)


def _by_rouge_score(name: str) -> Score:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=False)
    return lambda prediction, reference: float(scorer.score(reference, prediction)[name].fmeasure)


def _words(text: str) -> list[str]:
    from rouge_score.tokenize import tokenize

    found: list[str] = tokenize(text, None)
    return found


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _overlap(ours: Counter[tuple[str, ...]], theirs: Counter[tuple[str, ...]]) -> float:
    common = (ours & theirs).total()
    return _f1(common / ours.total(), common / theirs.total()) if common else 0.0


def _ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = _words(text)
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _pairs(text: str, with_words: bool) -> Counter[tuple[str, ...]]:
    """Count the pairs of words with at most `SKIP` others between, and each word but the last where wanted."""
    words = _words(text)
    found: Counter[tuple[str, ...]] = Counter()
    for i, word in enumerate(words[:-1]):
        found.update((word, other) for other in words[i + 1 : i + SKIP + 2])
        if with_words:
            found[(word,)] += 1
    return found


def _weight(length: float) -> float:
    return float(length**WEIGHT)


def _weighted(prediction: str, reference: str) -> float:
    """Return ROUGE-W. A word is a hit at most as often as the prediction has it, whichever lines it is in."""
    ours = [_words(line) for line in prediction.split("\n")]
    theirs = [_words(line) for line in reference.split("\n")]
    left = Counter(word for line in ours for word in line)
    hits = 0.0
    for sentence in theirs:
        hit = set[int]().union(*(_matched(sentence, line) for line in ours))
        run = 0
        for i in sorted(hit):
            word = sentence[i]
            if not left[word]:
                continue
            left[word] -= 1
            run += 1
            if i + 1 not in hit:
                hits += _weight(run)
                run = 0
    if not hits:
        return 0.0
    precision = (hits / _weight(sum(map(len, ours)))) ** (1 / WEIGHT)
    recall = (hits / _weight(sum(_weight(len(sentence)) for sentence in theirs))) ** (1 / WEIGHT)
    return min(1.0, _f1(precision, recall))


def _matched(reference: Sequence[str], prediction: Sequence[str]) -> set[int]:
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
                weights[j] = above[j - 1] + _weight(run + 1) - _weight(run)
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
