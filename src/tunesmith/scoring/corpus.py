"""BLEU and chrF, computed by sacrebleu: of each row for the verdict, and of the whole corpus as papers report them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.scoring.metric import References
from tunesmith.scoring.word_tokenizer import is_non_latin, space_words


class CorpusScore(NamedTuple):
    """A score of all answers together, from 0 to 1; `signature` is sacrebleu's, which papers give with it."""

    value: float
    signature: str


def bleu(predictions: Sequence[str], references: References, _: Path | None = None) -> list[float]:
    """Return sacrebleu's sentence BLEU (Papineni et al. 2002) of each row, over the n-gram orders that the texts have.

    Several references count together, as in the paper: an n-gram may be in any of them.
    """
    from sacrebleu.metrics.bleu import BLEU

    answers, rows, _spaced = _space_characters(predictions, references)
    return _sentence_scores(BLEU(effective_order=True), answers, rows)


def chrf(predictions: Sequence[str], references: References, _: Path | None = None) -> list[float]:
    """Return sacrebleu's chrF2 (Popovic 2015) of each row: F2 over character n-grams of up to 6 characters."""
    from sacrebleu.metrics.chrf import CHRF

    return _sentence_scores(CHRF(), predictions, references)


def corpus_bleu(predictions: Sequence[str], references: References) -> CorpusScore:
    """Return BLEU over the n-grams of all rows together (Papineni et al. 2002), with sacrebleu's default settings.

    Characters of scripts without spaces are separated as in `bleu`; the signature then has `tok:13a+characters`.
    """
    from sacrebleu.metrics.bleu import BLEU

    answers, rows, is_spaced = _space_characters(predictions, references)
    found = _corpus_score(BLEU(), answers, rows)
    return found._replace(signature=found.signature.replace("tok:13a", "tok:13a+characters")) if is_spaced else found


def corpus_chrf(predictions: Sequence[str], references: References) -> CorpusScore:
    """Return chrF2 over the character n-grams of all rows together (Popovic 2015), with sacrebleu's defaults."""
    from sacrebleu.metrics.chrf import CHRF

    return _corpus_score(CHRF(), predictions, references)


CORPUS_METRICS: dict[str, Callable[[Sequence[str], References], CorpusScore]] = {
    "bleu": corpus_bleu,
    "chrf": corpus_chrf,
}
"""The metrics whose corpus score is not the mean over rows."""


def _space_characters(predictions: Sequence[str], references: References) -> tuple[Sequence[str], References, bool]:
    """Separate the characters of rows in a script without spaces, as sacrebleu's tokenizer `zh` does.

    Returns:
        the texts, and whether any row was changed.
    """
    answers, rows, is_spaced = list(predictions), list(references), False
    for row, texts in enumerate(references):
        if any(map(is_non_latin, texts)):
            answers[row], rows[row] = space_words(answers[row]), [space_words(text) for text in texts]
            is_spaced = True
    return answers, rows, is_spaced


def _sentence_scores(metric: Any, predictions: Sequence[str], references: References) -> list[float]:
    rows = zip(predictions, references, strict=True)
    return [min(1.0, metric.sentence_score(prediction, list(texts)).score / 100) for prediction, texts in rows]


def _corpus_score(metric: Any, predictions: Sequence[str], references: References) -> CorpusScore:
    count = max(map(len, references))
    streams = [[texts[index] if index < len(texts) else None for texts in references] for index in range(count)]
    value = metric.corpus_score(list(predictions), streams).score / 100
    return CorpusScore(min(1.0, value), str(metric.get_signature()))
