"""Read a verdict strictly: a file that `evaluate` cannot have written is refused."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import read_json
from tunesmith.core.records import is_number
from tunesmith.core.verdict import Comparison, Guard, SetResult, Verdict

_CHECKS: dict[Any, tuple[Callable[[Any], bool], str]] = {  # by type: the check of a stored value, and what it should be
    float: (is_number, "a finite number"),
    int: (lambda value: type(value) is int and value >= 0, "a whole number from 0 up"),
    bool: (lambda value: type(value) is bool, "true or false"),
    str: (lambda value: type(value) is str, "a text"),
    tuple: (lambda value: type(value) is list, "a list"),
    Mapping: (lambda value: type(value) is dict, "an object"),
}


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
        verdict = _verdict(_typed(stored, Mapping[str, Any], "it"))
        _require_equal(verdict.to_json(), stored, "")
    except (ValueError, KeyError) as error:
        problem = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else error
        message = f"is not a complete verdict: {problem}"
        raise DamagedFile(message, where=where, hint=hint, code="damaged-verdict") from error
    return verdict


def _verdict(stored: Mapping[str, Any]) -> Verdict:
    entry = dict(_typed(stored["primary"], Mapping[str, Any], "primary"))
    if "by_row" in entry:
        by_row = _typed(entry["by_row"], Mapping[str, float], "primary.by_row")
        entry["by_row"] = [by_row["low"], by_row["high"]]
    primary = _consistent(_typed(entry, Comparison, "primary"), "primary")
    metrics = {}
    for name, other in _typed(stored["metrics"], Mapping[str, Any], "metrics").items():
        found = _typed(other, Comparison, f"metrics.{name}")
        found = replace(found, metric=name, failed=primary.rows + primary.failed - found.rows)
        metrics[name] = primary if name == primary.metric else _consistent(found, f"metrics.{name}")
    stored_guards = _typed(stored["guards"], tuple[_StoredGuard, ...], "guards")
    also = {name: _set_result(found, name) for name, found in _typed(stored.get("also", {}), _Objects, "also").items()}
    guarded = [guard.set for guard in stored_guards if guard.set is not None]
    if sorted(guarded) != sorted(also):
        raise ValueError(f"`guards` are on the sets {guarded}, which contradicts `also` with {list(also)}")
    guards = tuple(
        Guard((metrics if guard.set is None else also[guard.set].metrics)[guard.metric], guard.max_drop, guard.set)
        for guard in stored_guards
    )
    types = get_type_hints(Verdict)
    others = ("grouping", "reasons", "health", "digests", "conditions")
    more = {name: _typed(stored[name], types[name], name) for name in others}
    more["corpus"] = _typed(stored.get("corpus", {}), types["corpus"], "corpus")
    return Verdict(metrics[primary.metric], metrics, guards, **more, also=also)


def _set_result(stored: Mapping[str, Any], set_name: str) -> SetResult:
    """Return the result on a further held-out set."""
    name = f"also.{set_name}"
    rows, metrics = _typed(stored["rows"], int, f"{name}.rows"), dict[str, Comparison]()
    for metric, other in _typed(stored["metrics"], _Objects, f"{name}.metrics").items():
        found = _typed(other, Comparison, f"{name}.metrics.{metric}")
        found = replace(found, metric=metric, failed=rows - found.rows)
        metrics[metric] = _consistent(found, f"{name}.metrics.{metric}")
    return SetResult(rows, metrics, _typed(stored["health"], _Objects, f"{name}.health"))


def _typed(stored: Any, kind: Any, name: str) -> Any:
    """Return a JSON value as a value of a type or dataclass; raise ValueError with its name if it is of another type.

    Fields that the dataclass does not have are passed over.
    """
    inner = get_args(kind)
    if kind is Any or (stored is None and NoneType in inner):
        return stored
    if NoneType in inner:
        return _typed(stored, inner[0], name)
    is_record = is_dataclass(kind)
    holds, description = _CHECKS[Mapping if is_record else get_origin(kind) or kind]
    if not holds(stored):
        raise ValueError(f"`{name}` is {stored!r}, not {description}")
    if is_record:
        for field in fields(kind):
            if field.default is MISSING and field.name not in stored:
                raise ValueError(f"`{name}.{field.name}` is missing")
        types = get_type_hints(kind)
        return kind(
            **{key: _typed(value, types[key], f"{name}.{key}") for key, value in stored.items() if key in types}
        )
    if isinstance(stored, list):
        return tuple(_typed(entry, inner[0], f"{name}[{index}]") for index, entry in enumerate(stored))
    if isinstance(stored, dict):
        return {key: _typed(value, inner[1], f"{name}.{key}") for key, value in stored.items()}
    return stored


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


def _require_equal(derived: Any, stored: Any, name: str) -> None:
    """Raise ValueError at the first value that differs from the one that follows from the rest of the file.

    Fields that the record does not have are passed over.
    """
    if isinstance(derived, dict) and isinstance(stored, dict):
        for key, value in derived.items():
            if key not in stored:
                raise ValueError(f"`{name}{key}` is missing")
            _require_equal(value, stored[key], f"{name}{key}.")
    elif isinstance(derived, list) and isinstance(stored, list) and len(derived) == len(stored):
        for value, other in zip(derived, stored, strict=True):
            _require_equal(value, other, name)
    elif type(derived) is not type(stored) or derived != stored:
        raise ValueError(f"`{name.rstrip('.')}` is {stored!r}, which contradicts the rest: it should be {derived!r}")
