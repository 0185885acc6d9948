"""Steps, intervals and learning rates of a run, compared with their closed forms."""

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


def rates(settings: Recipe, rows: int) -> list[float]:
    plan = plan_steps(settings, rows)
    return [learning_rate_at(settings, plan, step) for step in range(plan.total_steps)]


# --- steps ---


@pytest.mark.parametrize(
    ("rows", "per_step", "epochs", "max_steps", "examples", "steps"),
    [
        (100, 8, 1, None, 100, 13),  # the last step has the remaining 4
        (96, 8, 1, None, 96, 12),
        (100, 8, 3, None, 300, 38),
        (100, 8, 0.1, None, 10, 2),
        (100, 8, 0.001, None, 1, 1),  # at least one example
        (1, 8, 1, None, 1, 1),
        (1, 1, 5, None, 5, 5),
        (7, 100, 1, None, 7, 1),  # more rows per step than there are
        (7, 100, 40, None, 280, 3),  # the same, over several epochs
        (100, 8, 1, 5, 40, 5),  # the lower limit applies
        (100, 8, 1, 13, 100, 13),
        (100, 8, 1, 12, 96, 12),
        (100, 8, 1, 1000, 100, 13),
        (100, 8, 3, 1, 8, 1),
        (3, 8, 1, 1, 3, 1),
        (10, 1, 0.25, None, 2, 2),  # half a row rounds to even
        (10, 1, 0.35, None, 4, 4),
    ],
)
def test_number_of_examples_and_steps(
    rows: int, per_step: int, epochs: float, max_steps: int | None, examples: int, steps: int
) -> None:
    plan = plan_steps(recipe(examples_per_step=per_step, epochs=epochs, max_steps=max_steps), rows)
    assert (plan.total_examples, plan.total_steps) == (examples, steps)
    assert plan.epochs == examples / rows


@given(
    rows=st.integers(1, 5000), per_step=st.integers(1, 300), epochs=st.floats(0.01, 10),
    max_steps=st.none() | st.integers(1, 400),
)  # fmt: skip
def test_steps_have_room_for_all_examples_and_no_more(
    rows: int, per_step: int, epochs: float, max_steps: int | None
) -> None:
    plan = plan_steps(recipe(examples_per_step=per_step, epochs=epochs, max_steps=max_steps), rows)
    assert (plan.total_steps - 1) * per_step < plan.total_examples <= plan.total_steps * per_step
    assert plan.total_steps <= (max_steps or math.inf)
    assert abs(plan.total_examples - epochs * rows) <= 1 or plan.total_steps == max_steps
    assert 1 <= plan.valid_every_steps <= plan.total_steps
    assert plan.save_every_steps == plan.valid_every_steps


@pytest.mark.parametrize(("steps", "tenth"), [(1, 1), (9, 1), (10, 1), (11, 2), (100, 10), (101, 11)])
def test_intervals_default_to_a_tenth_of_the_steps(steps: int, tenth: int) -> None:
    def intervals(**train: Any) -> tuple[int, int]:
        plan = plan_steps(recipe(examples_per_step=1, **train), steps)
        return plan.valid_every_steps, plan.save_every_steps

    assert intervals() == (tenth, tenth)
    assert intervals(valid_every_steps=7) == (7, 7)
    assert intervals(save_every_steps=7) == (tenth, 7)
    assert intervals(valid_every_steps=3, save_every_steps=7) == (3, 7)


# --- learning rates ---


def closed_form(schedule: str, step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return PEAK * (step + 1) / warmup
    progress = (step - warmup) / (total - warmup)
    return {"constant": PEAK, "linear": PEAK * (1 - progress), "cosine": PEAK * (1 + math.cos(math.pi * progress)) / 2}[
        schedule
    ]


@pytest.mark.parametrize(
    ("steps", "warmup", "decay", "lengths"),
    [(100, 0.1, 0.2, (10, 70, 20)), (100, 0.1, None, (10, 70, 20)), (10, 0.5, 0.5, (5, 0, 5)), (10, 0, 0, (0, 10, 0)),
     (3, 0.5, 0.5, (2, 0, 1)), (1, 0.03, 0.9, (0, 0, 1))],
)  # fmt: skip
def test_wsd_rises_stays_and_falls_by_the_root(
    steps: int, warmup: float, decay: float | None, lengths: tuple[int, int, int]
) -> None:
    settings = recipe(examples_per_step=1, schedule="wsd", warmup_fraction=warmup, decay_fraction=decay)
    rising, stable, falling = lengths
    expected = [PEAK * (step + 1) / rising for step in range(rising)] + [PEAK] * stable
    expected += [PEAK * (1 - math.sqrt(step / falling)) for step in range(falling)]
    assert rates(settings, steps) == pytest.approx(expected)
    assert min(rates(settings, steps)) > 0


@pytest.mark.parametrize(
    ("valid_every", "stop_after", "can"), [(1, 8, True), (1, 9, False), (2, 3, True), (2, 4, False)]
)
def test_stopping_early_takes_one_validation_more_than_it_waits_for(
    valid_every: int, stop_after: int, can: bool
) -> None:
    stop = {"after_validations": stop_after}
    plan = plan_steps(recipe(examples_per_step=1, valid_every_steps=valid_every, stop_early=stop), 10)
    assert plan.can_stop_early is can
    assert not plan_steps(recipe(examples_per_step=1, valid_every_steps=valid_every), 10).can_stop_early


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 0.03, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 33, 100])
def test_learning_rates_match_their_closed_form(schedule: str, warmup: float, steps: int) -> None:
    settings = recipe(examples_per_step=4, schedule=schedule, warmup_fraction=warmup)
    plan = plan_steps(settings, 4 * steps - 1)
    assert (plan.total_steps, plan.warmup_steps) == (steps, round(warmup * steps))
    computed = rates(settings, 4 * steps - 1)
    assert computed == pytest.approx([closed_form(schedule, step, plan.warmup_steps, steps) for step in range(steps)])
    # Every rate is above 0, and the highest is the peak.
    assert min(computed) > 0
    assert max(computed) == pytest.approx(PEAK)
    rising = computed[: plan.warmup_steps]
    assert rising == sorted(rising)
    falling = computed[plan.warmup_steps :]
    assert falling == sorted(falling, reverse=True)


def test_single_step_has_the_peak_learning_rate() -> None:
    for schedule in ("constant", "linear", "cosine"):
        for warmup in (0, 0.03, 0.9):
            assert rates(recipe(schedule=schedule, warmup_fraction=warmup), 1) == [PEAK]


def test_max_steps_shortens_warmup_and_schedule() -> None:
    """`max_steps` shortens the plan itself, so the learning rate falls to 0 in a short run too."""
    whole, short = (
        recipe(examples_per_step=1, warmup_fraction=0.1),
        recipe(examples_per_step=1, warmup_fraction=0.1, max_steps=5),
    )
    assert plan_steps(whole, 1000).warmup_steps == 100
    assert plan_steps(short, 1000).warmup_steps == 0
    assert rates(short, 1000)[-1] < 0.2 * PEAK


def test_plan_with_warmup_only_does_not_divide_by_zero() -> None:
    plan = StepPlan(
        train_rows=4, total_examples=4, total_steps=4, warmup_steps=4, valid_every_steps=1, save_every_steps=1
    )
    for schedule in ("constant", "linear", "cosine"):
        settings = recipe(schedule=schedule)
        assert [learning_rate_at(settings, plan, step) for step in range(4)] == pytest.approx(
            [PEAK * k / 4 for k in (1, 2, 3, 4)]
        )
