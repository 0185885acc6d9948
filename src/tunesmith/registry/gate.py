"""The gate before an alias moves: it opens for a whole verdict that says `better`, or by force with a reason."""

from typing import Any

from tunesmith.core.errors import RecipeError, VerdictRefused

_NUMBERS = ("base", "tuned", "gain", "low", "high", "confidence", "rows")
_LARGEST = 1e300  # NaN, infinity and integers beyond any float all fail `-_LARGEST < x < _LARGEST`


def check_gate(verdict: dict[str, Any], *, force: bool, reason: str | None) -> None:
    """Let a verdict pass, or say what was measured and why that does not do.

    Raises:
        VerdictRefused: it is not `better`, a guard did not hold, or it is not a whole verdict; and there is no force.
        RecipeError: force without a reason, or a reason without force.
    """
    has_reason = bool(reason and reason.strip())
    if force and not has_reason:
        raise RecipeError("--force needs a reason", hint='say why with --reason "..."; it goes into the log')
    if has_reason and not force:
        raise RecipeError("--reason has no effect without --force", hint="leave it out, or add --force")
    problems = refusal_reasons(verdict)
    if problems and not force:
        hint = 'to promote it all the same: `tunesmith promote ... --force --reason "..."`; both go into the log'
        raise VerdictRefused("; ".join(problems), where="verdict", hint=hint)


def refusal_reasons(verdict: object) -> list[str]:
    """Return every reason against promotion, none if there is none. What cannot be read speaks against it."""
    if not isinstance(verdict, dict):
        return ["there is none that can be read"]
    problems = _primary_problems(verdict.get("verdict"), verdict.get("primary"))
    metrics = verdict.get("metrics")
    problems += _guard_problems(verdict.get("guards"), metrics if isinstance(metrics, dict) else {})
    reasons = verdict.get("reasons")
    if problems and isinstance(reasons, list):
        problems += [reason for reason in reasons if isinstance(reason, str)]
    return problems


def _primary_problems(word: object, primary: object) -> list[str]:
    if not isinstance(primary, dict) or not isinstance(primary.get("metric"), str):
        return [f"it is {word!r}, but what was measured is missing"]
    if wrong := _invalid_numbers(primary, _NUMBERS) or _find_contradiction(word, primary):
        return [f"{primary['metric']} was not measured properly: {wrong}"]
    return [] if word == "better" else [f"{_measurement_text(primary)}: {_word_text(word)}"]


def _invalid_numbers(measured: dict[str, Any], names: tuple[str, ...]) -> str:
    """Return which of the named values are no numbers, empty if all are."""
    return ", ".join(f"{name} is {measured.get(name)!r}" for name in names if not _is_number(measured.get(name)))


def _find_contradiction(word: object, primary: dict[str, Any]) -> str:
    low, high = primary["low"], primary["high"]
    if not isinstance(primary["rows"], int) or primary["rows"] < 1:
        return f"rows is {primary['rows']!r}"
    if not low <= primary["gain"] <= high:
        return f"its gain {primary['gain']:+.4g} is not within {low:+.4g} to {high:+.4g}"
    min_gain = primary.get("min_gain")
    if word == "better" and min_gain is not None and not (_is_number(min_gain) and low > min_gain):
        return f"it is called better, but {low:+.4g} is not above the min_gain {min_gain!r}"
    return ""


def _measurement_text(values: dict[str, Any]) -> str:
    confidence = f"{100 * values['confidence']:.4g} %"
    return (
        f"{values['metric']} went from {values['base']:.4g} to {values['tuned']:.4g}, gain {values['gain']:+.4g} "
        f"({confidence} interval {values['low']:+.4g} to {values['high']:+.4g}, {values['rows']} rows)"
    )


def _word_text(word: object) -> str:
    known = {"not_better": "not better", "cannot_tell": "cannot tell whether that is better"}
    return known.get(word, f"{word!r} is no verdict") if isinstance(word, str) else "there is no verdict on that"


def _guard_problems(guards: object, metrics: dict[str, Any]) -> list[str]:
    if not isinstance(guards, list):
        return ["its guards are missing"]
    return [problem for guard in guards if (problem := _guard_problem(guard, metrics))]


def _guard_problem(guard: object, metrics: dict[str, Any]) -> str | None:
    if not isinstance(guard, dict) or not isinstance(guard.get("metric"), str):
        return f"a guard cannot be read: {guard!r}"
    metric = metrics.get(guard["metric"])
    values = {**(metric if isinstance(metric, dict) else {}), **guard}
    present = tuple(name for name in (*_NUMBERS, "max_drop") if name in values)
    if wrong := _invalid_numbers(values, present):
        return f"the guard {guard['metric']} was not measured properly: {wrong}"
    if guard.get("passed") is True:
        return None
    limit = f", where it may fall by {values['max_drop']:.4g}" if "max_drop" in values else ""
    measured = _measurement_text(values) if set(_NUMBERS) <= values.keys() else guard["metric"]
    return f"a guard did not hold: {measured}{limit}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
