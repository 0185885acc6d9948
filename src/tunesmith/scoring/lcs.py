"""The longest common subsequence (LCS) of two lists of words, by bit vectors: one integer per row of the LCS table.

For 40,000 x 40,000 words a table takes 13 GB and minutes, bit vectors 200 MB and seconds. Crochemore et al. 2001,
"A fast and practical bit-vector algorithm for the longest common subsequence problem".
"""

from collections.abc import Sequence


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    all_bits, positions = (1 << len(first)) - 1, _position_bits(first)
    row = all_bits
    for word in second:
        row = _next_row(row, positions.get(word, 0), all_bits)
    return len(first) - row.bit_count()


def lcs_positions(reference: Sequence[str], prediction: Sequence[str]) -> list[int]:
    """Return the positions of the LCS in the reference; among several LCSs the one that rouge-score chooses.

    The search goes back from the ends of both texts: over a pair of equal words, otherwise to the neighbour with the
    longer subsequence, and on a tie to the shorter reference.
    """
    all_bits, prediction_bits = (1 << len(prediction)) - 1, _position_bits(prediction)
    rows = [all_bits]  # one per prefix of the reference; at a zero bit the length grows by one
    for word in reference:
        rows.append(_next_row(rows[-1], prediction_bits.get(word, 0), all_bits))
    positions = []
    i, j = len(reference), len(prediction)
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            positions.append(i)
        elif _prefix_length(rows[i], j - 1) > _prefix_length(rows[i - 1], j):
            j -= 1
        else:
            i -= 1
    return positions[::-1]


def _position_bits(words: Sequence[str]) -> dict[str, int]:
    """Return {word: integer with a bit set at each of its positions}."""
    vectors: dict[str, int] = {}
    for position, word in enumerate(words):
        vectors[word] = vectors.get(word, 0) | 1 << position
    return vectors


def _next_row(row: int, matches: int, all_bits: int) -> int:
    """Return the bit vector of the table's next row."""
    equal = row & matches
    return ((row + equal) | (row - equal)) & all_bits


def _prefix_length(row: int, end: int) -> int:
    """Return the length of the LCS for the first `end` words, from a row's bit vector."""
    return end - (row & ((1 << end) - 1)).bit_count()
