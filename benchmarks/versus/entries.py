"""The results of a benchmark: a list of entries, one per system, which are written as JSON."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.versus.measure import Measured
from benchmarks.versus.spread import Spread, significant

Entry = dict[str, Any]


def entry(
    name: str,
    system: str,
    runs: Sequence[Measured],
    *,
    ratio: Sequence[float] | None = None,
    phase: str,
    **facts: Any,
) -> Entry:
    """Return the entry {name, system, tokens_per_second, peak_rss_gib, ...} of a system's runs.

    Args:
        ratio: our speed divided by theirs, for each repeat.
        phase: `in turns` (alternating with the others) or `tried once`.
    """
    rates = [run.tokens_per_second for run in runs if run.tokens_per_second is not None]
    speed = Spread.of(rates).to_json() if rates else None
    errors = [run.error for run in runs if run.error]
    made: Entry = {
        "name": name,
        "system": system,
        "phase": phase,
        "tokens_per_second": speed["median"] if speed else None,
        "tokens_per_second_spread": speed,
        "tokens_per_second_each": [significant(value) for value in rates],
        "peak_rss_gib": _most(runs, "peak_rss_gib"),
        "peak_gpu_gib": _most(runs, "peak_gpu_gib"),
        "seconds_to_first_step": _spread_of(runs, lambda run: run.first_step_seconds),
        "steps": max((len(run.steps) for run in runs), default=0),
        "versions": next((run.result["versions"] for run in runs if "versions" in run.result), {}),
        **facts,
    }
    if ratio:
        made |= {"ratio": Spread.of(ratio).to_json(), "ratio_each": [significant(value) for value in ratio]}
    if errors:
        made["error"] = errors[0]
    return made


def timed(name: str, system: str, what: str, seconds: Sequence[float], **facts: Any) -> Entry:
    """Return an entry that has only times."""
    spread = Spread.of(seconds).to_json() if seconds else None
    return {
        "name": name, "system": system, "what": what, "tokens_per_second": None, "peak_rss_gib": None,
        "seconds": spread["median"] if spread else None, "seconds_spread": spread,
        "seconds_each": [significant(value) for value in seconds], **facts,
    }  # fmt: skip


def skipped(name: str, system: str, why: str) -> Entry:
    """Return the entry of a system that was not measured."""
    return {"name": name, "system": system, "error": why, "tokens_per_second": None, "peak_rss_gib": None}


def _most(runs: Sequence[Measured], key: str) -> float | None:
    return max((run.result[key] for run in runs if run.result.get(key) is not None), default=None)


def _spread_of(runs: Sequence[Measured], of: Callable[[Measured], float | None]) -> dict[str, float] | None:
    values = [value for run in runs if (value := of(run)) is not None]
    return Spread.of(values).to_json() if values else None
