"""Filtered distributions are those of transformers' logits processors, and each row has its own random generator."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.errors import raises
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith.core.errors import NonFinite, RecipeError
from tunesmith.inference.request import Limits, Request
from tunesmith.inference.sampling import (
    GREEDY,
    Sampling,
    check_generation_options,
    draw,
    filter_logits,
    seed_samples,
)

ONE = {"temperature": 1.0}


def random_logits(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def expected(logits: torch.Tensor, sampling: Sampling, seen: list[int]) -> torch.Tensor:
    """Return the probabilities that transformers computes."""
    processors: list[Any] = [RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    processors += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    processors += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p else []
    processors += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    return LogitsProcessorList(processors)(torch.tensor([seen]), logits[None])[0].softmax(-1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 10**6},
        {"top_p": 0.01},
        {"top_p": 0.9},
        {"top_p": 1.0},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"temperature": 1.7, "top_k": 30, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2},
        {"temperature": 5.0, "top_p": 0.95},
    ],
)
@pytest.mark.parametrize("size", [320, 5000])
def test_filtered_distributions_are_those_of_transformers(settings: dict[str, float], size: int) -> None:
    sampling = Sampling(**{**ONE, **settings})  # type: ignore[arg-type]
    for seed in range(5):
        logits, seen = random_logits(size, seed), [3, 7, 7, 11 + seed]
        found = filter_logits(logits, sampling, seen).softmax(-1)
        torch.testing.assert_close(found, expected(logits, sampling, seen).double(), atol=1e-6, rtol=0)
        assert ((found > 0) == (expected(logits, sampling, seen) > 0)).all()


def test_top_p_sorts_more_tokens_if_the_likeliest_do_not_suffice() -> None:
    for spread, least, most in ((4.5, 1, 128), (3.5, 128, 1024), (2, 1024, 49_152)):
        logits = random_logits(49_152) / 3 * spread
        kept = (filter_logits(logits, Sampling(1.0, top_p=0.9)) > -math.inf).sum()
        assert kept == (expected(logits, Sampling(1.0, top_p=0.9), [0]) > 0).sum()
        assert least < kept < most


def test_filtering_does_not_change_the_logits() -> None:
    for logits in (random_logits(50), random_logits(50).double()):
        before = logits.clone()
        filter_logits(logits, Sampling(1.0, top_k=3, top_p=0.5, min_p=0.2, repetition_penalty=2.0), [1, 2])
        assert torch.equal(logits, before)


def test_draws_follow_the_distribution() -> None:
    scores = filter_logits(random_logits(50), Sampling(1.0, top_k=20))
    points = 20_000
    counts = torch.zeros(50)
    for i in range(points):
        counts[draw(scores, (i + 0.5) / points)] += 1
    assert (counts - scores.softmax(-1) * points).abs().max() <= 1
    assert draw(scores, 0.0) == int((scores > -math.inf).nonzero()[0])
    assert scores[draw(scores, 1 - 2**-53)] > -math.inf


def choose(sampling: Sampling, prompt: list[int], *steps: torch.Tensor) -> list[int]:
    """Return the tokens chosen from the logits of some steps; the prompt counts as seen."""
    request = Request(0, prompt, Limits(len(steps)), sampling)
    return [request.choose(logits, int(logits.argmax())) for logits in steps]


def test_a_tiny_temperature_gives_the_likeliest_token() -> None:
    logits = random_logits(50)
    assert choose(Sampling(1e-300), [1], logits) == [int(logits.argmax())]


def test_the_repetition_penalty_applies_to_greedy_answers() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0])
    assert [choose(Sampling(repetition_penalty=1.5), seen, logits) for seen in ([], [0], [0, 1])] == [[0], [1], [0]]


def test_draws_depend_on_seed_and_prompt_only() -> None:
    logits = [random_logits(320, seed) for seed in range(12)]

    def tokens(seed: int | None, prompt: list[int]) -> list[int]:
        return choose(Sampling(1.0, seed=seed), prompt, *logits)

    assert tokens(1, [5, 6]) == tokens(1, [5, 6])
    assert len({tuple(tokens(seed, prompt)) for seed in (1, 2) for prompt in ([5, 6], [5], [56])}) == 6
    assert tokens(None, [5, 6]) != tokens(None, [5, 6])


def test_the_tokens_of_a_seed_never_change() -> None:
    assert choose(Sampling(1.0, seed=1), [5, 6], *[torch.zeros(320)] * 6) == [290, 199, 176, 122, 263, 317]


def test_samples_have_consecutive_seeds() -> None:
    assert [sample.seed for sample in seed_samples(Sampling(1.0, seed=7), 3)] == [7, 8, 9]
    assert seed_samples(GREEDY, 1) == [GREEDY]
    seeds = [sample.seed for sample in seed_samples(Sampling(1.0), 3)]
    assert None not in seeds
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_nan_or_infinite_raise(bad: float) -> None:
    with raises(NonFinite, "non-finite"):
        choose(Sampling(1.0), [1], torch.tensor([1.0, bad]))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {**ONE, "top_k": 0},
        {**ONE, "top_p": 0.0},
        {**ONE, "top_p": 1.1},
        {**ONE, "min_p": -0.1},
        {**ONE, "min_p": 1.1},
        {**ONE, "seed": -1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"seed": 1},
    ],
)
def test_sampling_options_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with raises(RecipeError, "wrong-sampling") as caught:
        Sampling(**settings)  # type: ignore[arg-type]
    assert caught.value.hint


@pytest.mark.parametrize(
    ("sampling", "settings"),
    [
        (GREEDY, {"samples": 2}),
        (GREEDY, {"samples": 0}),
        (GREEDY, {"beams": 0}),
        (GREEDY, {"max_new_tokens": 0}),
        (GREEDY, {"stop": ["a", ""]}),
        (GREEDY, {"beams": 2, "stop": ["a"]}),
        (Sampling(1.0), {"beams": 2}),
        (Sampling(repetition_penalty=1.1), {"beams": 2}),
    ],
)
def test_contradicting_options_are_refused(sampling: Sampling, settings: dict[str, Any]) -> None:
    with raises(RecipeError, "wrong-sampling") as caught:
        check_generation_options(sampling, **settings)
    assert caught.value.hint


def test_the_seed_of_an_answer_follows_from_the_seed_the_row_and_the_sample() -> None:
    options = Sampling(temperature=1.0, top_k=5, seed=3)
    seeds = {
        options.of_answer("a", 1).seed, options.of_answer("a", 2).seed, options.of_answer("b", 1).seed,
        replace(options, seed=4).of_answer("a", 1).seed,
    }  # fmt: skip
    assert len(seeds) == 4
    assert replace(options.of_answer("a", 1), seed=3) == options
    assert options.of_answer("a", 1) == options.of_answer("a", 1)
    assert GREEDY.of_answer("a", 1) == GREEDY
