"""The gate before an alias moves: the verdict must be complete and `better`, or the move forced with a reason."""

from dataclasses import replace

from tunesmith.core.errors import DamagedFile, RecipeError, VerdictRefused
from tunesmith.core.verdict import Comparison, Guard, SeedGain
from tunesmith.core.verdict_reader import parse_verdict


def check_gate(stored: object, *, force: bool, reason: str | None, where: str = "verdict") -> None:
    """Raise an error unless a stored verdict allows promotion, or promotion is forced with a reason.

    Args:
        where: the name of the verdict in the error.

    Raises:
        VerdictRefused: not forced, and the verdict is missing, damaged or not `better`, or breaks a guard.
        RecipeError: force without a reason, or a reason without force.
    """
    check_reason(force=force, reason=reason)
    problems = refusal_reasons(stored)
    if problems and not force:
        hint = 'to do it anyway, repeat the command with --force --reason "..."; the log keeps both'
        raise VerdictRefused("; ".join(problems), where=where, hint=hint)


def check_reason(*, force: bool, reason: str | None) -> None:
    """Raise RecipeError for force without a reason, or a reason without force."""
    has_reason = bool(reason and reason.strip())
    if force and not has_reason:
        hint = 'add --reason "..."; the log keeps it'
        raise RecipeError("--force needs a reason", hint=hint, code="force-reason")
    if has_reason and not force:
        hint = "remove --reason, or add --force"
        raise RecipeError("--reason has no effect without --force", hint=hint, code="force-reason")


def refusal_reasons(stored: object) -> list[str]:
    """Return every reason against promotion; empty if the verdict allows it."""
    if stored is None:
        return ["there is no verdict"]
    try:
        verdict = parse_verdict(stored)
    except DamagedFile as error:
        return [error.message]
    primary = verdict.primary
    problems = [] if primary.verdict == "better" else [_not_better(primary)]
    if not problems and primary.own is not None and primary.own.low <= primary.min_gain:
        problems.append(_own_not_better(primary.own, primary))
    problems += [_guard_broken(guard) for guard in verdict.guards if not guard.passed]
    return [*problems, *verdict.reasons] if problems else []


def _not_better(primary: Comparison) -> str:
    words = {"not_better": "not better", "cannot_tell": "cannot tell whether it is better"}
    return f"{words[primary.verdict]}: {_measurement_text(primary)}"


def _own_not_better(own: SeedGain, primary: Comparison) -> str:
    """Return why the model to promote is refused although the mean over the seeds is better."""
    return (
        f"the mean over {len(primary.seeds)} seeds is better, but the model of seed {own.seed}, which would be "
        f"promoted, is not shown to be: {_measurement_text(_own_change(own, primary))}"
    )


def _own_change(own: SeedGain, mean: Comparison) -> Comparison:
    return replace(mean, tuned=own.tuned, gain=own.gain, low=own.low, high=own.high, seeds=())


def _guard_broken(guard: Guard) -> str:
    comparison = guard.comparison
    change = _measurement_text(comparison)
    if comparison.own is not None and comparison.low >= -guard.max_drop:
        change = (
            f"the model of seed {comparison.own.seed}: {_measurement_text(_own_change(comparison.own, comparison))}"
        )
    where = "" if guard.set is None else f" on the held-out set {guard.set}"
    return f"guard broken{where}: {change}, which may be worse by at most {guard.max_drop:.4g}"


def _measurement_text(comparison: Comparison) -> str:
    interval = f"{100 * comparison.confidence:.4g} % interval {comparison.low:+.4g} to {comparison.high:+.4g}"
    seeds = f", {len(comparison.seeds)} seeds" if comparison.seeds else ""
    return (
        f"{comparison.metric} {comparison.base:.4g} -> {comparison.tuned:.4g}, "
        f"gain {comparison.gain:+.4g} ({interval}, {comparison.rows} rows{seeds})"
    )
