"""The gate before an alias moves: it opens for a complete verdict that is `better`, or by force with a reason."""

from tunesmith.core.errors import DamagedFile, RecipeError, VerdictRefused
from tunesmith.core.verdict import Comparison, Guard
from tunesmith.core.verdict_reader import parse_verdict


def check_gate(stored: object, *, force: bool, reason: str | None) -> None:
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
    problems = refusal_reasons(stored)
    if problems and not force:
        hint = 'to promote it all the same: `tunesmith promote ... --force --reason "..."`; both go into the log'
        raise VerdictRefused("; ".join(problems), where="verdict", hint=hint)


def refusal_reasons(stored: object) -> list[str]:
    """Return every reason against promotion, none if there is none. A damaged or missing verdict is a reason."""
    if stored is None:
        return ["there is no verdict"]
    try:
        verdict = parse_verdict(stored)
    except DamagedFile as error:
        return [error.message]
    problems = [] if verdict.primary.verdict == "better" else [_not_better(verdict.primary)]
    problems += [_guard_broken(guard) for guard in verdict.guards if not guard.passed]
    return [*problems, *verdict.reasons] if problems else []


def _not_better(primary: Comparison) -> str:
    words = {"not_better": "not better", "cannot_tell": "cannot tell whether that is better"}
    return f"{_measured(primary)}: {words[primary.verdict]}"


def _guard_broken(guard: Guard) -> str:
    return f"a guard did not hold: {_measured(guard.comparison)}, where it may fall by {guard.max_drop:.4g}"


def _measured(found: Comparison) -> str:
    return (
        f"{found.metric} went from {found.base:.4g} to {found.tuned:.4g}, gain {found.gain:+.4g} "
        f"({100 * found.confidence:.4g} % interval {found.low:+.4g} to {found.high:+.4g}, {found.rows} rows)"
    )
