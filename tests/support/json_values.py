"""JSON values for property tests, with characters that are easily mistaken for line breaks."""

from hypothesis import strategies as st

# `str.splitlines` splits at each of these; JSON does not escape them.
LINE_BREAKS = "a\u2028b\u2029c\x85d\x0be\x1cf\rg\nh"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])) | st.just(LINE_BREAKS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
