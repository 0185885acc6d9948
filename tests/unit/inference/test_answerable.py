"""Prompts that leave no room for an answer: a few give a warning before training, many are refused."""

from tests.support.errors import raises

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import Example
from tunesmith.inference.answerable import check_positions
from tunesmith.inference.prompts import Prompts


def prompts_of(lengths: list[int], limit: int, decoder_prefix_ids: tuple[int, ...] = ()) -> Prompts:
    examples = tuple(Example(str(i), i, str(i), ()) for i in range(len(lengths)))
    prompts = tuple((5,) * length for length in lengths)
    return Prompts(examples, prompts, ("",) * len(lengths), (2,), limit, decoder_prefix_ids)


def test_prompts_with_room_for_an_answer_give_no_warning() -> None:
    assert check_positions(prompts_of([10] * 20, 54), 64) is None
    assert check_positions(prompts_of([10_000], 54), None) is None
    assert (
        check_positions(prompts_of([60], 60, decoder_prefix_ids=(0,)), 64) is None
    )  # the decoder has separate positions


def test_a_few_long_prompts_give_a_warning_and_many_are_refused() -> None:
    warning = check_positions(prompts_of([10] * 19 + [30], 40), 64)
    assert warning is not None
    assert all(text in warning for text in ("1 of 20", "test", "64", "30", "40"))
    named = ("2 of 20", "valid", "28 or less")
    with raises(RecipeError, "prompt-too-long", *named, where="evaluate.max_new_tokens"):
        check_positions(prompts_of([10] * 18 + [30, 36], 40), 64, "valid")


def test_the_hint_has_no_limit_if_no_limit_would_fit() -> None:
    with raises(RecipeError, "prompt-too-long") as caught:
        check_positions(prompts_of([64], 8), 64)
    assert "or less" not in str(caught.value.hint)
