"""ROUGE and BLEU work in every script, and score Latin text like the published packages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from tunesmith.scoring.metrics import score
from tunesmith.scoring.word_tokenizer import is_non_latin, latin_words, unicode_words, word_tokenizer_for

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SCRIPTS = {
    "Chinese": ("\u6211\u4eca\u5929\u5f88\u9ad8\u5174", "\u6211\u4eca\u5929\u4e0d\u9ad8\u5174"),
    "Japanese": ("\u4eca\u65e5\u306f\u3068\u3066\u3082\u5b09\u3057\u3044", "\u4eca\u65e5\u306f\u5b09\u3057\u3044"),
    "Hindi": (
        "\u0906\u091c \u092e\u094c\u0938\u092e \u0905\u091a\u094d\u091b\u093e \u0939\u0948",
        "\u0906\u091c \u092e\u094c\u0938\u092e \u092c\u0941\u0930\u093e \u0939\u0948",
    ),
    "Russian": ("\u042f \u043e\u0447\u0435\u043d\u044c \u0440\u0430\u0434", "\u042f \u0440\u0430\u0434"),
    "Arabic": (
        "\u0623\u0646\u0627 \u0633\u0639\u064a\u062f \u062c\u062f\u0627",
        "\u0623\u0646\u0627 \u0633\u0639\u064a\u062f",
    ),
    "Thai": (
        "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49\u0e14\u0e35\u0e21\u0e32\u0e01",
        "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49\u0e14\u0e35",
    ),
    "Korean": (
        "\uc624\ub298 \ub9e4\uc6b0 \ud589\ubcf5\ud569\ub2c8\ub2e4",
        "\uc624\ub298 \ud589\ubcf5\ud569\ub2c8\ub2e4",
    ),
    "Greek": (
        "\u03b5\u03af\u03bc\u03b1\u03b9 \u03c0\u03bf\u03bb\u03cd \u03ba\u03b1\u03bb\u03ac",
        "\u03b5\u03af\u03bc\u03b1\u03b9 \u03ba\u03b1\u03bb\u03ac",
    ),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scores_in_every_script(script: str) -> None:
    text, near = SCRIPTS[script]
    names = [*ROUGES, "rougeS", "bleu"]
    assert all(values == [pytest.approx(1.0)] for values in score([text], [text], names).values())
    for name, [value] in score([near], [text], ["rouge1", "rougeL", "rougeW", "chrf"]).items():
        assert 0 < value < 1, name
    assert score(["nothing of it"], [text], ["rougeL"])["rougeL"] == [0.0]


LATIN = st.text(alphabet="abc dEF12\n.,-!\u00e9\u00fc\u00df\u0142", max_size=40)


@given(prediction=LATIN, reference=LATIN)
def test_latin_text_scores_like_the_published_packages(prediction: str, reference: str) -> None:
    expected = RougeScorer(list(ROUGES), use_stemmer=False).score(reference, prediction)
    scores = score([prediction], [reference], ROUGES)
    assert {name: scores[name][0] for name in ROUGES} == pytest.approx({n: expected[n].fmeasure for n in ROUGES})
    bleu = BLEU(effective_order=True).sentence_score(prediction, [reference]).score / 100
    assert score([prediction], [reference], ["bleu"])["bleu"][0] == pytest.approx(min(1.0, bleu))


def test_chinese_bleu_equals_sacrebleu_with_tokenizer_zh() -> None:
    reference = "\u6211\u7528 iPhone 14 \u62cd\u4e86\u7167\uff0c\u5f88\u597d\u3002"
    prediction = "\u6211\u7528 iPhone 15 \u62cd\u7167\uff0c\u5f88\u597d\u3002"
    expected = BLEU(effective_order=True, tokenize="zh").sentence_score(prediction, [reference]).score / 100
    assert score([prediction], [reference], ["bleu"])["bleu"] == [pytest.approx(expected)]
    assert 0 < expected < 1


def test_words_are_split_by_the_script_of_the_reference() -> None:
    assert unicode_words("\u6211\u7528iPhone 14.") == ["\u6211", "\u7528", "iphone", "14"]
    # Marks stay with their letters.
    assert unicode_words("\u0905\u091a\u094d\u091b\u093e!") == ["\u0905\u091a\u094d\u091b\u093e"]
    assert unicode_words("plain Words, 12") == latin_words("plain Words, 12") == ["plain", "words", "12"]
    assert word_tokenizer_for("a plain sentence with one \u03b1 in it") is latin_words, "one symbol is not Greek text"
    assert word_tokenizer_for("caf\u00e9 cr\u00e8me") is latin_words
    assert word_tokenizer_for("\u6211\u7528 iPhone 14 \u62cd\u7167") is unicode_words
    assert not is_non_latin("12 + 30 = \u00bd \u2211")
