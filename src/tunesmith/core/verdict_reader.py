"""Read a verdict strictly: a file that `evaluate` cannot have written is refused."""

from pathlib import Path
from typing import Any

from tunesmith.core.errors import DamagedFile
from tunesmith.core.files import read_json
from tunesmith.core.records import is_number
from tunesmith.core.verdict import Comparison, GroupChange, Grouping, Guard, Verdict


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
        verdict = _verdict(_Fields(stored, ""))
        _require_equal(verdict.to_json(), stored, "")
    except ValueError as problem:
        message = f"is not a complete verdict: {problem}"
        raise DamagedFile(message, where=where, hint=hint, code="damaged-verdict") from problem
    return verdict


class _Fields:
    """The fields of a JSON object, read with their types. Every method raises ValueError with the name of the field."""

    def __init__(self, stored: object, name: str) -> None:
        if not isinstance(stored, dict):
            raise ValueError(f"`{name}` is {stored!r}, not an object" if name else f"it is {stored!r}, not an object")
        self.values, self.name = stored, name

    def path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def get(self, key: str) -> Any:
        if key not in self.values:
            raise ValueError(f"`{self.path(key)}` is missing")
        return self.values[key]

    def require(self, key: str, holds: bool, kind: str) -> Any:
        if not holds:
            raise ValueError(f"`{self.path(key)}` is {self.values[key]!r}, not {kind}")
        return self.values[key]

    def number(self, key: str) -> Any:
        return self.require(key, is_number(self.get(key)), "a finite number")

    def count(self, key: str, least: int = 0) -> int:
        value = self.get(key)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return int(self.require(key, whole, f"a whole number from {least} up"))

    def optional_count(self, key: str) -> int | None:
        return None if self.get(key) is None else self.count(key)

    def text(self, key: str) -> str:
        return str(self.require(key, isinstance(self.get(key), str), "a text"))

    def flag(self, key: str) -> bool:
        return bool(self.require(key, isinstance(self.get(key), bool), "true or false"))

    def entries(self, key: str) -> list[Any]:
        return list(self.require(key, isinstance(self.get(key), list), "a list"))

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(self.require(key, all(isinstance(entry, str) for entry in self.entries(key)), "a list of texts"))

    def object(self, key: str) -> "_Fields":
        return _Fields(self.get(key), self.path(key))

    def objects(self, key: str) -> list["_Fields"]:
        return [_Fields(entry, f"{self.path(key)}[{index}]") for index, entry in enumerate(self.entries(key))]


def _verdict(stored: _Fields) -> Verdict:
    entry = stored.object("primary")
    by_row = entry.object("by_row") if "by_row" in entry.values else None
    primary = _comparison(
        entry,
        entry.text("metric"),
        min_gain=entry.number("min_gain"),
        failed=entry.count("failed"),
        by_row=(by_row.number("low"), by_row.number("high")) if by_row else None,
    )
    metrics = {}
    for name in stored.object("metrics").values:
        entry = stored.object("metrics").object(name)
        failed = primary.rows + primary.failed - entry.count("rows")
        metrics[name] = primary if name == primary.metric else _comparison(entry, name, failed=failed)
    for name in {primary.metric, *(guard.text("metric") for guard in stored.objects("guards"))} - metrics.keys():
        raise ValueError(f"`metrics.{name}` is missing")
    return Verdict(
        primary=primary,
        metrics=metrics,
        guards=tuple(
            Guard(metrics[guard.text("metric")], guard.number("max_drop")) for guard in stored.objects("guards")
        ),
        grouping=None if stored.get("grouping") is None else _grouping(stored.object("grouping")),
        reasons=stored.texts("reasons"),
        health={name: stored.object("health").object(name).values for name in stored.object("health").values},
        digests=stored.object("digests").values,
        conditions=stored.object("conditions").values,
    )


def _comparison(stored: _Fields, metric: str, *, failed: int, **more: Any) -> Comparison:
    found = Comparison(
        metric=metric,
        **{key: stored.number(key) for key in ("base", "tuned", "gain", "low", "high", "confidence")},
        rows=stored.count("rows", least=1),
        groups=stored.count("groups", least=1),
        rows_needed=stored.optional_count("rows_needed"),
        groups_needed=stored.optional_count("groups_needed"),
        higher_is_better=stored.flag("higher_is_better"),
        failed=failed,
        **more,
    )
    if not found.low <= found.gain <= found.high:
        raise ValueError(
            f"`{stored.path('gain')}` is {found.gain:+.4g}, outside its interval {found.low:+.4g} to {found.high:+.4g}"
        )
    if failed < 0 or found.groups > found.rows:
        raise ValueError(f"`{stored.name}` counts {found.rows} rows in {found.groups} groups, {failed} of them failed")
    return found


def _grouping(stored: _Fields) -> Grouping:
    return Grouping(
        by=stored.text("by") if stored.get("by") is not None else None,
        **{key: stored.count(key) for key in ("groups", "rows", "improved", "worsened")},
        fell=tuple(
            GroupChange(
                group=change.text("group"),
                rows=change.count("rows"),
                **{key: change.number(key) for key in ("base", "tuned", "gain")},
            )
            for change in stored.objects("fell")
        ),
    )


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
