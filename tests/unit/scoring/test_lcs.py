"""The LCS by bit vectors equals the LCS by a table, in length and in positions."""

import time
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from tunesmith.scoring.lcs import lcs_length, lcs_positions

WORDS = st.lists(st.sampled_from("abcd"), max_size=30)


@given(reference=WORDS, prediction=WORDS)
def test_lcs_equals_rouge_score(reference: list[str], prediction: list[str]) -> None:
    table = rouge_scorer._lcs_table(reference, prediction)
    assert lcs_length(reference, prediction) == lcs_length(prediction, reference) == table[-1][-1]
    assert lcs_positions(reference, prediction) == rouge_scorer._backtrack_norec(table, reference, prediction)


def test_lcs_of_long_texts_is_fast() -> None:
    random = Random(0)
    long, other = ([str(random.randrange(2000)) for _ in range(8_000)] for _ in range(2))
    began = time.process_time()
    assert lcs_length(long, long) == 8_000
    assert 0 < lcs_length(long, other) < 8_000
    assert time.process_time() - began < 10  # a table of 64 million cells takes minutes
