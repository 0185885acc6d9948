"""Estimate what a run's verdict can detect, from the number of test rows and the typical spread of the metric."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.dataset import UsedRows
from tunesmith.inference.prompts import select_examples
from tunesmith.plan.further_sets import SetPlan
from tunesmith.recipe.schema import Recipe
from tunesmith.scoring.bootstrap import min_units
from tunesmith.scoring.metrics import is_share
from tunesmith.scoring.power import detectable_gain, excluded_drop, typical_spread, units_needed, units_to_pass

_LARGE_GAIN = 0.1
"""The smallest gain that can be detected is large from here on: most gains will be smaller."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the test rows can detect in the primary metric.

    Attributes:
        rows: rows that both models are asked about, of `all_rows`.
        units: independent units among them: groups of rows.
        spread: the assumed standard deviation of the units' differences; None if the scale of the metric is unknown.
        gain: the gain beyond `promote.min_gain` that is detected with a probability of 80 %; None if it is unknown,
            or if there are too few units for any verdict.
        rows_for_half: rows that detect half of it, if groups stay as large as they are.
        seeds: training seeds that the verdict covers. How much they differ is unknown before the run.
    """

    metric: str
    rows: int
    all_rows: int
    units: int
    spread: float | None
    gain: float | None
    rows_for_half: int | None
    seeds: int = 1


def estimate_evidence(recipe: Recipe, rows: UsedRows) -> Evidence:
    """Estimate what the test rows of a recipe can detect."""
    settings = recipe.evaluate
    chosen = select_examples(rows, "test", settings.rows, recipe.seed)
    units, spread = len({example.group for example in chosen}), typical_spread(settings.primary)
    gain = half = None
    if spread is not None:
        gain = detectable_gain(units, spread, settings.confidence)
    if spread is not None and gain is not None:
        half = round(units_needed(gain / 2, spread, settings.confidence) * len(chosen) / units)
    all_rows, seeds = len({entry.id for entry in rows.ledger_entries("test")}), recipe.replicates or 1
    return Evidence(settings.primary, len(chosen), all_rows, units, spread, gain, half, seeds)


def evidence_text(evidence: Evidence) -> str:
    """Return the gain that can be detected, and how many rows detect half of it."""
    rows = f"{evidence.rows:,} rows"
    if evidence.units < evidence.rows:
        rows += f" in {evidence.units:,} groups"
    if evidence.gain is None or evidence.rows_for_half is None:
        return f"the gain in {evidence.metric} that can be detected with {rows} is unknown before the run"
    if evidence.seeds > 1:
        rows += f", if the {evidence.seeds} seeds hardly differ"
    half = f"evaluate.rows: {_rounded(evidence.rows_for_half)}"
    if evidence.rows_for_half > evidence.all_rows:
        half = f"about {_rounded(evidence.rows_for_half):,} test rows are needed, and there are {evidence.all_rows:,}"
    gain, half_gain = _points(evidence.gain), _points(evidence.gain / 2)
    return f"a gain of about {gain} or more in {evidence.metric} can be detected with {rows}; for {half_gain}, {half}"


def evidence_warnings(recipe: Recipe, evidence: Evidence, sets: Sequence[SetPlan]) -> Iterator[str]:
    """Yield warnings if the verdict is likely to be `cannot tell`, or if a guard cannot pass."""
    confidence, fewest = recipe.evaluate.confidence, min_units(recipe.evaluate.confidence)
    units = "rows" if evidence.units == evidence.rows else "groups"
    if evidence.units < fewest:
        yield f"the verdict will be `cannot tell`: it needs at least {fewest} {units}, and there are {evidence.units}"
    elif evidence.gain is not None and evidence.spread is not None and evidence.gain > _LARGE_GAIN:
        needed = _rounded(units_needed(_LARGE_GAIN, evidence.spread, confidence))
        yield (
            f"the verdict is `cannot tell` for most gains below {_points(evidence.gain)} in {evidence.metric}, with "
            f"{evidence.units:,} {units}; about {needed:,} would detect {_points(_LARGE_GAIN)}"
        )
    guards = [(guard.metric, guard.metric, guard.max_drop, evidence.units) for guard in recipe.evaluate.guards]
    guards += [(f"{entry.metric} on {entry.name}", entry.metric, entry.max_drop, entry.units) for entry in sets]
    for name, metric, max_drop, count in guards:
        if is_share(metric) and excluded_drop(count, confidence) > max_drop:
            yield (
                f"the guard of {name} cannot pass, even if no row changes: with {count:,} independent rows, a drop of "
                f"{max_drop:g} cannot be excluded; at least {units_to_pass(max_drop, confidence):,} are needed"
            )


def _points(share: float) -> str:
    points = 100 * share
    return f"{points:.0f} points" if points >= 9.5 else f"{points:.1f} points"


def _rounded(rows: int) -> int:
    """Round up to two digits, because the estimate is rough."""
    step = int(f"1{'0' * (len(str(rows)) - 2)}")
    return -(-rows // step) * step
