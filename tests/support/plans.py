"""What tests read from a plan."""

from tunesmith.plan.run_plan import RunPlan


def other_warnings(plan: RunPlan) -> list[str]:
    """Return the warnings of a plan without the one about the few test rows of tiny recipes."""
    return [warning for warning in plan.warnings if "`cannot tell`" not in warning]
