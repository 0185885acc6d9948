"""Read a verdict strictly: a file that `evaluate` cannot have written is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import read_json
from tunesmith.core.stored import require_equal, typed
from tunesmith.core.verdict import Comparison, Guard, SetResult, Verdict

_Objects = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class _StoredGuard:
    metric: str
    max_drop: float
    set: str | None = None


def read_verdict(path: Path) -> Verdict:
    """Return the verdict in a file; raise DamagedFile if it is incomplete or contradicts itself."""
    return parse_verdict(read_json(path), where=str(path), hint=f"delete {path.parent} and evaluate again")


def parse_verdict(stored: object, *, where: str = "verdict", hint: str | None = None) -> Verdict:
    """Rebuild a verdict from the content of verdict.json.

    Raises:
        DamagedFile: a value is missing or of the wrong type, or two values contradict each other, such as the verdict
            and the interval.
    """
    try:
        verdict = _verdict(typed(stored, Mapping[str, Any], "it"))
        require_equal(verdict.to_json(), stored, "")
    except (ValueError, KeyError) as error:
        problem = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else error
        message = f"is not a complete verdict: {problem}"
        raise DamagedFile(message, where=where, hint=hint, code="damaged-verdict") from error
    return verdict


def _verdict(stored: Mapping[str, Any]) -> Verdict:
    entry = dict(typed(stored["primary"], Mapping[str, Any], "primary"))
    if "by_row" in entry:
        by_row = typed(entry["by_row"], Mapping[str, float], "primary.by_row")
        entry["by_row"] = [by_row["low"], by_row["high"]]
    primary = _consistent(typed(entry, Comparison, "primary"), "primary")
    metrics = {}
    for name, other in typed(stored["metrics"], Mapping[str, Any], "metrics").items():
        found = typed(other, Comparison, f"metrics.{name}")
        found = replace(found, metric=name, failed=primary.rows + primary.failed - found.rows)
        metrics[name] = primary if name == primary.metric else _consistent(found, f"metrics.{name}")
    stored_guards = typed(stored["guards"], tuple[_StoredGuard, ...], "guards")
    also = {name: _set_result(found, name) for name, found in typed(stored.get("also", {}), _Objects, "also").items()}
    guarded = [guard.set for guard in stored_guards if guard.set is not None]
    if sorted(guarded) != sorted(also):
        raise ValueError(f"`guards` are on the sets {guarded}, which contradicts `also` with {list(also)}")
    guards = tuple(
        Guard((metrics if guard.set is None else also[guard.set].metrics)[guard.metric], guard.max_drop, guard.set)
        for guard in stored_guards
    )
    types = get_type_hints(Verdict)
    others = ("grouping", "reasons", "health", "digests", "conditions")
    more = {name: typed(stored[name], types[name], name) for name in others}
    more["corpus"] = typed(stored.get("corpus", {}), types["corpus"], "corpus")
    return Verdict(metrics[primary.metric], metrics, guards, **more, also=also)


def _set_result(stored: Mapping[str, Any], set_name: str) -> SetResult:
    """Return the result on a further held-out set."""
    name = f"also.{set_name}"
    rows, metrics = typed(stored["rows"], int, f"{name}.rows"), dict[str, Comparison]()
    for metric, other in typed(stored["metrics"], _Objects, f"{name}.metrics").items():
        found = typed(other, Comparison, f"{name}.metrics.{metric}")
        found = replace(found, metric=metric, failed=rows - found.rows)
        metrics[metric] = _consistent(found, f"{name}.metrics.{metric}")
    return SetResult(rows, metrics, typed(stored["health"], _Objects, f"{name}.health"))


def _consistent(found: Comparison, name: str) -> Comparison:
    """Return the comparison; raise ValueError if its numbers contradict each other."""
    if not found.low <= found.gain <= found.high:
        interval = f"{found.low:+.4g} to {found.high:+.4g}"
        raise ValueError(f"`{name}.gain` is {found.gain:+.4g}, outside its interval {interval}")
    if any(not seed.low <= seed.gain <= seed.high for seed in found.seeds):
        raise ValueError(f"`{name}.seeds` has a gain outside its interval")
    if found.failed < 0 or not 1 <= found.groups <= found.rows:
        raise ValueError(f"`{name}` counts {found.rows} rows in {found.groups} groups, {found.failed} of them failed")
    return found
