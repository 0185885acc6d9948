"""The divergence of two distributions of which only the most probable tokens are known."""

import math
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.core.json_server import RequestRefused
from tunesmith.proof.checks import ask_scores, check_logits, distances
from tunesmith.proof.distributions import divergence, most_probable, preference
from tunesmith.proof.tolerances import tolerance_for


def _logs(*shares: float) -> dict[int, float]:
    return {token: math.log(share) for token, share in enumerate(shares)}


def _top(scores: dict[int, float], count: int) -> dict[int, float]:
    return dict(sorted(scores.items(), key=lambda pair: -pair[1])[:count])


def test_the_divergence_of_whole_distributions_is_that_of_kullback_and_leibler() -> None:
    ours, theirs = _logs(0.5, 0.3, 0.2), _logs(0.4, 0.4, 0.2)
    expected = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.4)
    assert divergence(ours, theirs, 3) == pytest.approx(expected)
    assert divergence(ours, ours, 3) == 0.0


def test_other_tokens_count_as_one() -> None:
    ours, theirs = _logs(0.5, 0.3), _logs(0.4, 0.2)
    expected = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.4)
    assert divergence(ours, theirs, 2) == pytest.approx(expected)


def test_it_never_exceeds_the_divergence_of_the_whole() -> None:
    generator = random.Random(0)
    for _ in range(300):
        sides = []
        for _ in range(2):
            weights = [generator.expovariate(1) ** 3 for _ in range(30)]
            sides.append(_logs(*(weight / sum(weights) for weight in weights)))
        whole = sum(math.exp(p) * (p - sides[1][token]) for token, p in sides[0].items())
        assert 0 <= divergence(_top(sides[0], 8), _top(sides[1], 8), 8) <= whole + 1e-9


def test_a_sure_token_that_the_other_side_never_takes_is_far() -> None:
    ours = {7: math.log(0.999), 8: math.log(0.0009)}
    theirs = {3: math.log(0.98), 4: math.log(0.019), 7: math.log(1e-9)}
    assert divergence(ours, theirs, 2) > 10
    assert divergence(ours, {3: math.log(0.98), 4: math.log(0.019)}, 2) > 3


def test_preference_is_the_gap_to_another_token() -> None:
    scores = _logs(0.6, 0.3)
    assert most_probable(scores) == 0
    assert preference(scores, 1) == pytest.approx(math.log(2))
    assert (preference(scores, 0), preference(scores, 9)) == (0, math.inf)


@pytest.mark.parametrize("broken", [math.nan, None, -math.inf])
def test_scores_that_are_no_numbers_are_far_from_any_distribution(broken: float | None) -> None:
    ours = _logs(0.5, 0.3, 0.2)
    answer = SimpleNamespace(prompt=(3,))
    reference: Any = SimpleNamespace(scored={0: [ours, ours]}, answers=[answer], answer_with_end=lambda place: (0, 1))
    engine: Any = SimpleNamespace(token_scores=lambda prompt, ids, top: [ours, dict.fromkeys(ours, broken)])
    scores = ask_scores(engine, reference)
    assert scores is not None
    found = distances(scores, [ours, ours])
    assert (found.mean_kl > 1.0, found.largest > 1.0) == (True, True)
    assert math.isfinite(found.mean_kl)  # or proof.json could not be written


@pytest.mark.parametrize("refused", [{4}, {3, 4}])
def test_scores_that_are_refused_fail_the_check(refused: set[int]) -> None:
    ours = _logs(0.5, 0.3, 0.2)
    answers = [SimpleNamespace(prompt=(prompt,)) for prompt in (3, 4)]
    reference: Any = SimpleNamespace(
        scored={0: [ours], 1: [ours]},
        scores_of=lambda places: [ours for _ in places],
        answers=answers,
        answer_with_end=lambda place: (0,),
    )

    def token_scores(prompt: Sequence[int], ids: Sequence[int], top: int) -> list[Any]:
        if prompt[0] in refused:
            raise RequestRefused(400, "the context is full", where="engine")
        return [ours]

    engine: Any = SimpleNamespace(name="engine", token_scores=token_scores)
    check = check_logits("engine", ask_scores(engine, reference), reference, tolerance_for("f32"))
    assert check.status == "failed"
