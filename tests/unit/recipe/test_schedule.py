"""The numbers of a run against their closed forms."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.recipe.schedule import StepPlan, learning_rate_at, plan_steps
from tunesmith.recipe.schema import Recipe

PEAK = 2e-4


def recipe(**train: Any) -> Recipe:
    return Recipe.model_validate({
        "name": "x", "model": {"base": "org/model"},
        "data": {"task": "text", "text": "t", "source": {"file": "x.csv"}},
        "tuning": {"method": "full"}, "train": {"learning_rate": PEAK, **train},
        "evaluate": {"metrics": ["perplexity"], "primary": "perplexity"},
    })  # fmt: skip


def rates(one: Recipe, rows: int) -> list[float]:
    plan = plan_steps(one, rows)
    return [learning_rate_at(one, plan, step) for step in range(plan.total_steps)]


# --- how many steps ---


@pytest.mark.parametrize(
    ("rows", "per_step", "epochs", "max_steps", "examples", "steps"),
    [
        (100, 8, 1, None, 100, 13),  # the last step takes the 4 that are left
        (96, 8, 1, None, 96, 12),
        (100, 8, 3, None, 300, 38),
        (100, 8, 0.1, None, 10, 2),
        (100, 8, 0.001, None, 1, 1),  # never nothing
        (1, 8, 1, None, 1, 1),
        (1, 1, 5, None, 5, 5),
        (7, 100, 1, None, 7, 1),  # a step larger than the data
        (7, 100, 40, None, 280, 3),  # and one that sees rows several times
        (100, 8, 1, 5, 40, 5),  # the nearer limit holds
        (100, 8, 1, 13, 100, 13),
        (100, 8, 1, 12, 96, 12),
        (100, 8, 1, 1000, 100, 13),
        (100, 8, 3, 1, 8, 1),
        (3, 8, 1, 1, 3, 1),
        (10, 1, 0.25, None, 2, 2),  # half a row is rounded to even
        (10, 1, 0.35, None, 4, 4),
    ],
)
def test_examples_and_steps(
    rows: int, per_step: int, epochs: float, max_steps: int | None, examples: int, steps: int
) -> None:
    plan = plan_steps(recipe(examples_per_step=per_step, epochs=epochs, max_steps=max_steps), rows)
    assert (plan.total_examples, plan.total_steps) == (examples, steps)
    assert plan.epochs == examples / rows


@given(
    rows=st.integers(1, 5000), per_step=st.integers(1, 300), epochs=st.floats(0.01, 10),
    max_steps=st.none() | st.integers(1, 400),
)  # fmt: skip
def test_steps_hold_their_examples(rows: int, per_step: int, epochs: float, max_steps: int | None) -> None:
    plan = plan_steps(recipe(examples_per_step=per_step, epochs=epochs, max_steps=max_steps), rows)
    assert (plan.total_steps - 1) * per_step < plan.total_examples <= plan.total_steps * per_step
    assert plan.total_steps <= (max_steps or math.inf)
    assert abs(plan.total_examples - epochs * rows) <= 1 or plan.total_steps == max_steps
    assert 1 <= plan.valid_every_steps <= plan.total_steps
    assert plan.save_every_steps == plan.valid_every_steps


@pytest.mark.parametrize(("steps", "tenth"), [(1, 1), (9, 1), (10, 1), (11, 2), (100, 10), (101, 11)])
def test_intervals_are_a_tenth_unless_given(steps: int, tenth: int) -> None:
    def intervals(**train: Any) -> tuple[int, int]:
        plan = plan_steps(recipe(examples_per_step=1, **train), steps)
        return plan.valid_every_steps, plan.save_every_steps

    assert intervals() == (tenth, tenth)
    assert intervals(valid_every_steps=7) == (7, 7)
    assert intervals(save_every_steps=7) == (tenth, 7)
    assert intervals(valid_every_steps=3, save_every_steps=7) == (3, 7)


# --- how fast they learn ---


def closed_form(schedule: str, step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return PEAK * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    return {"constant": PEAK, "linear": PEAK * (1 - done), "cosine": PEAK * (1 + math.cos(math.pi * done)) / 2}[
        schedule
    ]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 0.03, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 33, 100])
def test_learning_rates(schedule: str, warmup: float, steps: int) -> None:
    one = recipe(examples_per_step=4, schedule=schedule, warmup_fraction=warmup)
    plan = plan_steps(one, 4 * steps - 1)
    assert (plan.total_steps, plan.warmup_steps) == (steps, round(warmup * steps))
    found = rates(one, 4 * steps - 1)
    assert found == pytest.approx([closed_form(schedule, step, plan.warmup_steps, steps) for step in range(steps)])
    # No step is without effect, none is above the peak, and the peak is reached.
    assert min(found) > 0
    assert max(found) == pytest.approx(PEAK)
    rising = found[: plan.warmup_steps]
    assert rising == sorted(rising)
    falling = found[plan.warmup_steps :]
    assert falling == sorted(falling, reverse=True)


def test_a_run_of_one_step_learns_at_the_peak() -> None:
    for schedule in ("constant", "linear", "cosine"):
        for warmup in (0, 0.03, 0.9):
            assert rates(recipe(schedule=schedule, warmup_fraction=warmup), 1) == [PEAK]


def test_a_run_cut_short_warms_up_within_its_own_length() -> None:
    """`max_steps` shortens the plan itself, so the schedule comes to its end in a trial run too."""
    whole, short = (
        recipe(examples_per_step=1, warmup_fraction=0.1),
        recipe(examples_per_step=1, warmup_fraction=0.1, max_steps=5),
    )
    assert plan_steps(whole, 1000).warmup_steps == 100
    assert plan_steps(short, 1000).warmup_steps == 0
    assert rates(short, 1000)[-1] < 0.2 * PEAK


def test_a_plan_that_is_all_warmup_divides_by_nothing() -> None:
    plan = StepPlan(
        train_rows=4, total_examples=4, total_steps=4, warmup_steps=4, valid_every_steps=1, save_every_steps=1
    )
    for schedule in ("constant", "linear", "cosine"):
        one = recipe(schedule=schedule)
        assert [learning_rate_at(one, plan, step) for step in range(4)] == pytest.approx(
            [PEAK * k / 4 for k in (1, 2, 3, 4)]
        )
