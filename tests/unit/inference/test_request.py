"""Stop strings are found at the token that completes them, however the tokenizer divides them."""

import pytest
from tests.support.tiny import make_tokenizer

from tunesmith.inference.request import StopStrings

TEXT = "Say one.\n\nQ: two?\n日本語 and so on</s>  end"


@pytest.mark.parametrize("stop", ["\n\n", "e.\n", "Q: two", "日本", "本語 and so", "</s>", "  end", " ", "S", TEXT])
@pytest.mark.parametrize("more", [(), ("never", "x" * 40)])
def test_a_stop_string_is_found_at_the_first_token_that_completes_it(stop: str, more: tuple[str, ...]) -> None:
    made = make_tokenizer(None)
    ids = made.encode("before " * 20 + TEXT)
    decoded = "".join(made.decode(ids))
    found = StopStrings((stop, *more), made.decode)
    place = next(place for place in range(1, len(ids) + 1) if stop in made.decode(ids[:place]))
    ends = [found.completed_by_last(ids[:place]) for place in range(1, place + 1)]
    assert ends == [False] * (place - 1) + [True]
    assert found.cut(made.decode(ids[:place])) == decoded[: decoded.index(stop)]


def test_text_is_cut_at_the_first_of_several_stop_strings() -> None:
    stops = StopStrings(("c", "bc"), str)
    assert stops.cut("abcd") == "a"
    assert stops.cut("ab") == "ab"
    assert stops.cut("cab") == ""
