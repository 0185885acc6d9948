"""Rows without room for an answer: a few give a warning before training, many are refused."""

import pytest

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Example
from tunesmith.inference.answerable import check_positions
from tunesmith.inference.prompts import Prompts


def asked(lengths: list[int], limit: int, decoder_start_ids: tuple[int, ...] = ()) -> Prompts:
    examples = tuple(Example(str(i), i, str(i), ()) for i in range(len(lengths)))
    prompts = tuple((5,) * length for length in lengths)
    return Prompts(examples, prompts, ("",) * len(lengths), (2,), limit, decoder_start_ids)


def test_all_with_room_is_no_warning() -> None:
    assert check_positions(asked([10] * 20, 54), 64) is None
    assert check_positions(asked([10_000], 54), None) is None
    assert check_positions(asked([60], 60, decoder_start_ids=(0,)), 64) is None  # a decoder has positions of its own


def test_few_rows_give_a_warning_and_many_are_refused() -> None:
    warning = check_positions(asked([10] * 19 + [30], 40), 64)
    assert warning is not None
    assert warning.startswith("1 of 20 test rows")
    with pytest.raises(RecipeError) as caught:
        check_positions(asked([10] * 18 + [30, 36], 40), 64, "valid")
    assert (caught.value.exit_code, caught.value.where) == (2, "evaluate.max_new_tokens")
    assert caught.value.message.startswith("2 of 20 valid rows")
    assert "28 or less" in str(caught.value.hint)


def test_no_number_is_advised_if_none_would_do() -> None:
    with pytest.raises(RecipeError) as caught:
        check_positions(asked([64], 8), 64)
    assert "or less" not in str(caught.value.hint)
