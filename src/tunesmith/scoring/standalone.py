"""`score` and `verdict` for outputs that did not come from tunesmith: JSONL files in, plain values out."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import DataError, RecipeError
from tunesmith.core.records import is_number
from tunesmith.core.verdict import Comparison
from tunesmith.scoring.metric import LIKELIHOOD_COLUMNS
from tunesmith.scoring.metrics import LIKELIHOOD_METRICS, is_share, score, share_hint
from tunesmith.scoring.metrics import higher_is_better as known_direction
from tunesmith.scoring.row_scores import VerdictSettings, compare, likelihood_of
from tunesmith.scoring.unscorable import unscorable_rows, unscorable_text
from tunesmith.scoring.verdict import describe_verdict, failed_text, rows_needed_text

_TYPE_NAMES = {int: "a number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_COMPRESSION_FORMATS = {
    b"\x1f\x8b": ("gzip", "gunzip -k"), b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"), b"BZh": ("bzip2", "bunzip2 -k"),
    b"\xfd7zXZ": ("xz", "unxz -k"), b"PK\x03\x04": ("zip", "unzip"),
}  # fmt: skip
_REFERENCE_INDEX = re.compile(r"references\[(\d+)\]")
Rows = list[tuple[int, dict[str, Any]]]
"""Line number and row."""


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """The comparison of two files. `direction` says how it is known whether a higher value is better."""

    comparison: Comparison
    direction: Literal["given", "assumed", "known"]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison for programs."""
        found, by_row = self.comparison, self.comparison.by_row
        return {
            **found.to_json(),
            **{key: getattr(found, key) for key in ("verdict", "min_gain", "improved", "worsened")},
            "direction": self.direction,
            "by_row": {"low": by_row[0], "high": by_row[1]} if by_row else None,
            "failed": found.failed,
        }


def score_file(
    file: Path, metrics: Sequence[str], *, database: Path | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Score the rows {"prediction", "reference"} of a JSONL file; return {rows, mean, values}, values row by row.

    If a metric is blind on some references, such as ROUGE on those without a word, `warnings` say so.

    Raises:
        DataError: the file is unreadable, or a row lacks one of the two, or a metric refuses a reference.
    """
    predictions, references, lines = [], [], []
    for number, row in _read_rows(file):
        for key in ("prediction", "reference"):
            if key not in row:
                raise DataError(f"has no `{key}`", where=f"{file}:{number}", hint="rows are {prediction, reference}")
        if not isinstance(row["prediction"], str):
            raise DataError("`prediction` is not text", where=f"{file}:{number}")
        right = row["reference"] if isinstance(row["reference"], list) else [row["reference"]]
        if not right or not all(isinstance(one, str) for one in right):
            raise DataError("`reference` is not text or a list of texts", where=f"{file}:{number}")
        predictions.append(row["prediction"])
        references.append(row["reference"])
        lines.append(number)
    try:
        values = score(predictions, references, metrics, database=database, folder=folder)
    except DataError as error:  # a metric knows the place in a list, its user the line of a file
        if (place := _REFERENCE_INDEX.fullmatch(error.where or "")) is None:
            raise
        where = f"{file}:{lines[int(place[1])]}"
        raise DataError(f"`reference` {error.message}", where=where, hint=error.hint) from error
    mean = {name: sum(column) / len(column) for name, column in values.items()}
    blind = {name: len(unscorable_rows(name, references)) for name in values}
    warnings = [unscorable_text(name, count, len(references)) for name, count in blind.items() if count]
    found = {"rows": len(predictions), "mean": mean, "values": values}
    return {**found, "warnings": warnings} if warnings else found


def score_text(result: dict[str, Any]) -> str:
    """Return the means of `score_file` as lines."""
    lines = [f"{name:14} {value:.4f}" for name, value in result["mean"].items()]
    warnings = [f"warning: {text}" for text in result.get("warnings", ())]
    return "\n".join([*lines, f"{'rows':14} {result['rows']}", *warnings])


def compare_files(
    base: Path,
    tuned: Path,
    *,
    metric: str | None,
    min_gain: float,
    confidence: float,
    seed: int,
    higher_is_better: bool | None = None,
) -> FileVerdict:
    """Judge two files of per-row scores; rows are paired by `id` if they have one, else by order.

    Rows that share a `group` depend on one another; it is enough if one of the files names it. A row that has `failed`
    in either file is left out of both and counted. `perplexity` and `token_accuracy` may follow from the rows'
    `log_likelihood`, `tokens` and `correct`, as in a run's own files. The gain is improvement, whichever the direction.

    Args:
        higher_is_better: the direction; by default it follows from the metric's name.

    Raises:
        DataError: a file is unreadable, rows do not pair, or the metric is missing or not a number.
    """
    before, after = list(_read_rows(base)), list(_read_rows(tuned))
    metric = metric or _infer_metric(before[0][1], after[0][1], base)
    before, after = _pair_rows(before, after, base, tuned)
    known = known_direction(metric)
    up = higher_is_better if higher_is_better is not None else known is not False
    names = [
        _group_key(row, other, f"{base}:{number}") for (number, row), (_, other) in zip(before, after, strict=True)
    ]
    groups = names if any("group" in row for _, row in (*before, *after)) else None
    sides = [
        [_check_values(row, metric, file, n) for n, row in rows] for rows, file in ((before, base), (after, tuned))
    ]
    _check_min_gain(metric, min_gain, sides)
    settings = VerdictSettings(min_gain, confidence, seed)
    return FileVerdict(
        compare(metric, *sides, lower_is_better=not up, groups=groups, settings=settings, by_row=True),
        "given" if higher_is_better is not None else "assumed" if known is None else "known",
    )


def _check_min_gain(metric: str, min_gain: float, sides: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Raise RecipeError for a gain that shares of 1 cannot reach; other tools may count the same metric in percent."""
    values = (row[metric] for rows in sides for row in rows if row.get(metric) is not None)
    if is_share(metric) and min_gain > 1 and max(values, default=0.0) <= 1:
        raise RecipeError(f"no gain can exceed it: {share_hint(metric, min_gain)}", where="--min-gain")


def verdict_text(result: FileVerdict) -> str:
    """Return a verdict as a sentence, and what has to be known to read it."""
    found = result.comparison
    direction = "" if found.higher_is_better else " (lower is better)"
    rows = f"{found.rows} rows"
    if found.groups < found.rows:
        rows += f" in {found.groups} groups"
    lines = [
        f"{describe_verdict(found)}: {found.metric} {found.base:.4f} -> {found.tuned:.4f}{direction}, gain "
        f"{found.gain:+.4f} [{found.low:+.4f}, {found.high:+.4f}] at {found.confidence:.0%}, {rows}"
    ]
    if found.groups_needed:
        lines[0] += f"; {rows_needed_text(found)}"
    if found.by_row:
        lines.append("counted by row, the interval would be [{:+.4f}, {:+.4f}]".format(*found.by_row))
    if found.failed:
        lines.append(failed_text(found))
    if result.direction == "assumed":
        lines.append(f"note: assumed that a higher `{found.metric}` is better; if not, add --lower-is-better")
    return "\n".join(lines)


def _read_text(file: Path) -> str:
    """Return a JSONL file's text; raise DataError with what to do about a file of another kind."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(file)) from error
    for start, (kind, command) in _COMPRESSION_FORMATS.items():
        if content.startswith(start):
            raise DataError(f"is compressed with {kind}", where=str(file), hint=f"{command} {shlex.quote(str(file))}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=str(file)) from error
    if text.lstrip().startswith("[") and _is_json_list(text):
        hint = f"write one object per line: jq -c '.[]' {shlex.quote(str(file))}"
        raise DataError("is one JSON list, not JSONL", where=f"{file}:1", hint=hint)
    return text


def _is_json_list(text: str) -> bool:
    """Say whether a text is, or begins as, one list of objects."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return re.match(r"\s*\[\s*(\{|$)", text) is not None
    return isinstance(whole, list) and all(isinstance(one, dict) for one in whole)


def _read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _read_text(file)
    empty = True
    # Not `splitlines`: to that U+0085 and U+2028 end a line too, which JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"is not valid JSON: {error}", where=f"{file}:{number}") from error
        if not isinstance(row, dict):
            raise DataError("is not a JSON object", where=f"{file}:{number}")
        empty = False
        yield number, row
    if empty:
        raise DataError("has no rows", where=str(file))


def _infer_metric(before: dict[str, Any], after: dict[str, Any], file: Path) -> str:
    known = ("id", "group", "row", "failed", *LIKELIHOOD_COLUMNS)
    names = [k for k, v in before.items() if k not in known and _is_score(v) and k in after]
    names += [
        k
        for k in LIKELIHOOD_METRICS
        if k not in before and all(one in before and one in after for one in LIKELIHOOD_COLUMNS)
    ]
    if len(names) == 1:
        return names[0]
    raise DataError(f"rows have {len(names)} values to compare", where=str(file), hint=f"--metric NAME of {names}")


def _pair_rows(before: Rows, after: Rows, base: Path, tuned: Path) -> tuple[Rows, Rows]:
    """Return the rows of both files in one order; raise DataError where a row has no partner."""
    without = [f"{file}:{n}" for rows, file in ((before, base), (after, tuned)) for n, row in rows if "id" not in row]
    if len(without) == len(before) + len(after):
        if len(before) != len(after):
            raise DataError(f"{base} has {len(before)} rows and {tuned} {len(after)}", hint="give every row an `id`")
        return before, after
    if without:  # by order, rows that have an id could meet another
        raise DataError("has no `id`, and other rows have one", where=without[0], hint="give it to all rows or to none")
    first, second = _rows_by_id(before, base), _rows_by_id(after, tuned)
    _check_id_types(first, second, base, tuned)
    if alone := sorted(str(key) for _, key in first.keys() ^ second.keys()):
        raise DataError(f"{len(alone)} rows are in one file only, such as id {alone[0]}", where=f"{base}, {tuned}")
    return list(first.values()), [second[key] for key in first]


def _check_id_types(first: dict[Any, Any], second: dict[Any, Any], base: Path, tuned: Path) -> None:
    """Raise DataError if ids would pair but for being a number in one file and text in the other."""
    texts = {str(key): key for _, key in second}
    for flag, key in first:
        other = texts.get(str(key), key)
        if (flag, key) not in second and type(other) is not type(key):
            raise DataError(
                f"`id` {json.dumps(key)} is {_TYPE_NAMES[type(key)]} in {base} "
                f"and {_TYPE_NAMES[type(other)]} in {tuned}",
                where=f"{base}, {tuned}",
                hint="write ids as text, or as numbers, in both files",
            )


def _rows_by_id(rows: Rows, file: Path) -> dict[Any, tuple[int, dict[str, Any]]]:
    found: dict[Any, tuple[int, dict[str, Any]]] = {}
    for number, row in rows:
        key = _lookup_key(row["id"], "id", f"{file}:{number}")
        if key in found:
            raise DataError(f"has the `id` of line {found[key][0]} again: {row['id']}", where=f"{file}:{number}")
        found[key] = (number, row)
    return found


def _group_key(row: dict[str, Any], other: dict[str, Any], where: str) -> tuple[Any, ...]:
    """Return what a pair of rows is grouped by: its place, where neither names a group."""
    named = [one["group"] for one in (row, other) if "group" in one]
    if len(named) == 2 and named[0] != named[1]:
        raise DataError(f"the two files say different groups: {named[0]!r} and {named[1]!r}", where=where)
    return ("group", _lookup_key(named[0], "group", where)) if named else ("row", where)


def _lookup_key(value: Any, key: str, where: str) -> tuple[bool, Any]:
    """Return a value to look up by, 1 and true told apart; raise DataError for a list or an object."""
    if isinstance(value, list | dict):
        raise DataError(f"`{key}` is {value!r}, not text or a number", where=where)
    return isinstance(value, bool), value


def _check_values(row: dict[str, Any], metric: str, file: Path, number: int) -> dict[str, Any]:
    """Return a row whose values of a metric are finite numbers, or that failed."""
    if row.get("failed"):
        return row
    needed = LIKELIHOOD_COLUMNS if likelihood_of(metric, [row]) and "tokens" in row else (metric,)
    for name in needed:
        if not _is_score(row.get(name)):
            raise DataError(f"`{name}` is {row.get(name)!r}, not a finite number", where=f"{file}:{number}")
    return row | {name: float(row[name]) for name in needed}


def _is_score(value: object) -> bool:
    return isinstance(value, bool) or is_number(value)
