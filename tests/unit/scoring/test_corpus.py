"""Corpus BLEU and chrF equal sacrebleu's, also if rows have different numbers of references."""

import pytest
import sacrebleu

from tunesmith.scoring.corpus import corpus_bleu, corpus_chrf
from tunesmith.scoring.metrics import score

ANSWERS = ["the cat sat on the mat today", "a dog runs", "", "red and blue and green"]
REFERENCES = [
    ["the cat sat on a mat", "the cat is sitting on the mat today"],
    ["a dog runs home"],
    ["nothing"],
    ["red and blue", "red, blue and green", "red and blue and green"],
]


def test_corpus_scores_equal_sacrebleu() -> None:
    streams = [[texts[index] if index < len(texts) else None for texts in REFERENCES] for index in range(3)]
    found = corpus_bleu(ANSWERS, REFERENCES)
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(ANSWERS, streams).score / 100)  # type: ignore[arg-type]
    assert found.signature.startswith("nrefs:var|")
    assert "tok:13a|" in found.signature
    assert found.value != pytest.approx(sum(score(ANSWERS, REFERENCES, ["bleu"])["bleu"]) / len(ANSWERS))
    found = corpus_chrf(ANSWERS, REFERENCES)
    assert found.value == pytest.approx(sacrebleu.corpus_chrf(ANSWERS, streams).score / 100)  # type: ignore[arg-type]
    assert "nc:6" in found.signature
    assert corpus_bleu(ANSWERS[:1], [["x"]]).signature.startswith("nrefs:1|")


def test_chinese_characters_are_separated_as_by_sacrebleu() -> None:
    answers, references = ["我今天去了北京。", "他喜欢猫"], [["我今天去北京了。"], ["他很喜欢猫和狗"]]
    found = corpus_bleu(answers, references)
    expected = sacrebleu.corpus_bleu(answers, [[texts[0] for texts in references]], tokenize="zh").score / 100
    assert found.value == pytest.approx(expected)
    assert found.value > 0
    assert "tok:13a+characters|" in found.signature


def test_empty_answers_score_0() -> None:
    assert corpus_bleu(["", ""], [["a"], ["b"]]).value == corpus_chrf(["", ""], [["a"], ["b"]]).value == 0
