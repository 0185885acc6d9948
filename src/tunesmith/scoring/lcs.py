"""The longest common subsequence of two lists of words, a line of the table at a time as the bits of one number.

A table of 40,000 x 40,000 words would take 13 GB and minutes; its bits take 200 MB and seconds. Crochemore et al.
2001, "A fast and practical bit-vector algorithm for the longest common subsequence problem".
"""

from collections.abc import Sequence


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    all_bits, places = (1 << len(first)) - 1, _position_bits(first)
    row = all_bits
    for word in second:
        row = _next_row(row, places.get(word, 0), all_bits)
    return len(first) - row.bit_count()


def lcs_positions(reference: Sequence[str], prediction: Sequence[str]) -> list[int]:
    """Return the places in the reference of the common subsequence that rouge-score chooses among the longest.

    It walks back from the end: over a pair of equal words, else to the neighbour with the longer subsequence, in doubt
    to the shorter reference.
    """
    all_bits, places = (1 << len(prediction)) - 1, _position_bits(prediction)
    rows = [all_bits]  # of each beginning of the reference; a zero bit is where the length grows
    for word in reference:
        rows.append(_next_row(rows[-1], places.get(word, 0), all_bits))
    found = []
    i, j = len(reference), len(prediction)
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
        elif _prefix_length(rows[i], j - 1) > _prefix_length(rows[i - 1], j):
            j -= 1
        else:
            i -= 1
    return found[::-1]


def _position_bits(words: Sequence[str]) -> dict[str, int]:
    """Return for each word the bits of its places."""
    found: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        found.setdefault(word, []).append(place)
    made = {}
    for word, here in found.items():
        bits = bytearray(here[-1] // 8 + 1)
        for place in here:
            bits[place // 8] |= 1 << place % 8
        made[word] = int.from_bytes(bits, "little")
    return made


def _next_row(row: int, matches: int, all_bits: int) -> int:
    """Return the next line of the table's bits."""
    equal = row & matches
    return ((row + equal) | (row - equal)) & all_bits


def _prefix_length(row: int, end: int) -> int:
    """Return how long the subsequence is up to a place."""
    return end - (row & ((1 << end) - 1)).bit_count()
