"""The commands `score` and `verdict`: score or compare JSONL files of any system."""

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
from tunesmith.scoring.corpus import CORPUS_METRICS
from tunesmith.scoring.metric import LIKELIHOOD_COLUMNS, as_lists
from tunesmith.scoring.metrics import LIKELIHOOD_METRICS, is_share, score, share_hint
from tunesmith.scoring.metrics import higher_is_better as known_direction
from tunesmith.scoring.row_scores import VerdictSettings, compare, likelihood_of
from tunesmith.scoring.samples import split_pass
from tunesmith.scoring.unscorable import unscorable_rows, unscorable_text
from tunesmith.scoring.verdict import describe_verdict, failed_text, needed_text

_COMPRESSION_FORMATS = {
    b"\x1f\x8b": ("gzip", "gunzip -k"), b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"), b"BZh": ("bzip2", "bunzip2 -k"),
    b"\xfd7zXZ": ("xz", "unxz -k"), b"PK\x03\x04": ("zip", "unzip"),
}  # fmt: skip
_ARGUMENT_INDEX = re.compile(r"(prediction|reference)s\[(\d+)\]")
Rows = list[tuple[int, dict[str, Any]]]
"""(line number, row)."""


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """The comparison of two files. `direction` is the source of the metric's direction."""

    comparison: Comparison
    direction: Literal["given", "assumed", "known"]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison for `verdict --json`."""
        found, by_row = self.comparison, self.comparison.by_row
        return {
            **found.to_json(),
            **{key: getattr(found, key) for key in ("min_gain", "failed", "improved", "worsened")},
            "verdict": found.verdict,
            "direction": self.direction,
            "by_row": {"low": by_row[0], "high": by_row[1]} if by_row else None,
        }


def score_file(
    file: Path, metrics: Sequence[str], *, database: Path | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Score the rows {"prediction", "reference"} of a JSONL file.

    A row with a text as its `error`, as `generate` writes it, is left out: a missing answer is not a wrong one.

    Returns:
        {rows, mean: {metric: number}, values: {metric: [value per row, None if it is left out]}}; `corpus`, {metric:
        {value, signature}}, of metrics whose published scores are not means over rows; and `warnings` of rows that are
        left out, and of references that a metric cannot score, such as ROUGE those without words.

    Raises:
        DataError: the file is unreadable, a row has no prediction or reference, all rows have an error, or a metric
            refuses a reference.
    """
    lines = list(_read_rows(file))
    for number, row in lines:
        for key in ("prediction", "reference"):
            if key not in row:
                hint = 'write rows as {"prediction": ..., "reference": ...}'
                raise DataError(f"has no `{key}`", where=f"{file}:{number}", hint=hint, code="missing-key")
    rows = [(number, row) for number, row in lines if not _has_error(row)]
    if not rows:
        problem, hint = "has no answer: every row has an `error`", "see `error` for the reasons"
        raise DataError(problem, where=str(file), hint=hint, code="no-rows")
    predictions, references = ([row[key] for _, row in rows] for key in ("prediction", "reference"))
    try:
        columns = [row for _, row in rows]
        values = score(predictions, references, metrics, database=database, folder=folder, rows=columns)
    except DataError as error:  # name the line of the file instead of the index in the list
        if (found := _ARGUMENT_INDEX.fullmatch(error.where or "")) is None:
            raise
        key, where = found[1], f"{file}:{rows[int(found[2])][0]}"
        raise DataError(f"`{key}` {error.message}", where=where, hint=error.hint, code=error.code) from error
    mean = {name: sum(column) / len(column) for name, column in values.items()}
    unscorable = {name: len(unscorable_rows(name, references)) for name in values}
    warnings = [unscorable_text(name, count, len(rows)) for name, count in unscorable.items() if count]
    if left_out := len(lines) - len(rows):
        warnings.append(f"{left_out:,} of {len(lines):,} rows have an `error` instead of an answer and are left out")
    of_corpus = [name for name in values if name in CORPUS_METRICS]
    corpus = {name: CORPUS_METRICS[name](predictions, as_lists(references))._asdict() for name in of_corpus}
    more = {"corpus": corpus, "warnings": warnings}
    of_lines = {name: list(_with_gaps(column, lines)) for name, column in values.items()}
    return {"rows": len(rows), "mean": mean, "values": of_lines, **{key: value for key, value in more.items() if value}}


def _has_error(row: dict[str, Any]) -> bool:
    return isinstance(error := row.get("error"), str) and bool(error)


def _with_gaps(values: Sequence[float], lines: Rows) -> Iterator[float | None]:
    """Yield the value of each line, None for those with an error."""
    remaining = iter(values)
    for _, row in lines:
        yield None if _has_error(row) else next(remaining)


def score_text(result: dict[str, Any]) -> str:
    """Return the means and warnings of `score_file` as lines of text."""
    lines = [f"{name:14} {value:.4f}" for name, value in result["mean"].items()]
    for name, found in result.get("corpus", {}).items():
        lines.append(f"{f'corpus {name}':14} {found['value']:.4f} ({found['signature']})")
    warnings = [f"warning: {text}" for text in result.get("warnings", ())]
    return "\n".join([*lines, f"{'rows':14} {result['rows']}", *warnings])


def compare_files(
    base: Path, tuned: Path, metric: str | None, settings: VerdictSettings, *, higher_is_better: bool | None = None
) -> FileVerdict:
    """Compare two files of scores per row. Rows are paired by `id` if they have one, else by order.

    Rows with the same `group` are not independent; the group may be in only one of the files. A row with `failed` in
    either file is left out for both and counted. `perplexity` and `token_accuracy` can be computed from
    `log_likelihood`, `tokens` and `correct`, as in a run's files. A positive gain is an improvement in any direction.

    Args:
        higher_is_better: direction of the metric; by default from its name.

    Raises:
        DataError: a file is unreadable, rows cannot be paired, or the metric is missing or not a number.
    """
    before, after = list(_read_rows(base)), list(_read_rows(tuned))
    metric = metric or _infer_metric(before[0][1], after[0][1], base)
    before, after = _pair_rows(before, after, base, tuned)
    known = known_direction(metric)
    up = higher_is_better if higher_is_better is not None else known is not False
    pairs = zip(before, after, strict=True)
    names = [_group_key(row, other, f"{base}:{number}") for (number, row), (_, other) in pairs]
    groups = names if any("group" in row for _, row in (*before, *after)) else None
    first = [_check_values(row, metric, f"{base}:{number}") for number, row in before]
    second = [_check_values(row, metric, f"{tuned}:{number}") for number, row in after]
    _check_min_gain(metric, settings.min_gain, [*first, *second])
    comparison = compare(metric, first, second, lower_is_better=not up, groups=groups, settings=settings, by_row=True)
    return FileVerdict(comparison, "given" if higher_is_better is not None else "assumed" if known is None else "known")


def _check_min_gain(metric: str, min_gain: float, rows: Sequence[dict[str, Any]]) -> None:
    """Raise RecipeError for a `min_gain` above 1 if all scores are shares; other tools may use percent instead."""
    values = (row[metric] for row in rows if row.get(metric) is not None)
    if is_share(metric) and min_gain > 1 and max(values, default=0.0) <= 1:
        message = f"no gain can exceed {min_gain:g}"
        raise RecipeError(message, where="--min-gain", hint=share_hint(metric, min_gain), code="unreachable-threshold")


def verdict_text(result: FileVerdict) -> str:
    """Return a verdict as text: one sentence, followed by notes on groups, failed rows and an assumed direction."""
    comparison = result.comparison
    direction = "" if comparison.higher_is_better else " (lower is better)"
    rows = f"{comparison.rows} rows"
    if comparison.groups < comparison.rows:
        rows += f" in {comparison.groups} groups"
    scores = f"{comparison.metric} {comparison.base:.4f} -> {comparison.tuned:.4f}{direction}"
    interval = f"[{comparison.low:+.4f}, {comparison.high:+.4f}] at {comparison.confidence:.0%}"
    lines = [f"{describe_verdict(comparison)}: {scores}, gain {comparison.gain:+.4f} {interval}, {rows}"]
    if needed := needed_text(comparison):
        lines[0] += f"; {needed}"
    if comparison.by_row:
        lines.append("with independent rows, the interval would be [{:+.4f}, {:+.4f}]".format(*comparison.by_row))
    if comparison.failed:
        lines.append(failed_text(comparison))
    if result.direction == "assumed":
        lines.append(f"note: assumed that a higher `{comparison.metric}` is better; if not, add --lower-is-better")
    return "\n".join(lines)


def _read_text(file: Path) -> str:
    """Return the text of a JSONL file; raise DataError, with the command to convert it, for another format."""
    where = str(file)
    try:
        content = file.read_bytes()
    except OSError as error:
        hint = "give a JSONL file that this user can read"
        raise DataError(f"cannot be read: {error.strerror}", where=where, hint=hint, code="unreadable") from error
    for magic, (tool, command) in _COMPRESSION_FORMATS.items():
        if content.startswith(magic):
            hint = f"{command} {shlex.quote(where)}"
            raise DataError(f"is compressed with {tool}", where=where, hint=hint, code="not-jsonl")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=where, hint="convert it with iconv", code="encoding") from error


def _read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not `splitlines`, which also splits at U+0085 and U+2028; JSON does not escape them.
    lines = [(number, line) for number, line in enumerate(_read_text(file).split("\n"), 1) if line.strip()]
    hint = "write one JSON object per line"
    if not lines:
        raise DataError("has no rows", where=str(file), hint=hint, code="no-rows")
    for number, line in lines:
        problem = "is not a JSON object"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row, problem = None, f"is not JSON: {error}"
        if not isinstance(row, dict):
            if line.lstrip().startswith("["):
                hint += f"; if the file is one list: jq -c '.[]' {shlex.quote(str(file))}"
            raise DataError(problem, where=f"{file}:{number}", hint=hint, code="not-jsonl")
        yield number, row


def _infer_metric(before: dict[str, Any], after: dict[str, Any], file: Path) -> str:
    no_metrics = ("id", "group", "row", "failed", *LIKELIHOOD_COLUMNS)
    names = [key for key, value in before.items() if key not in no_metrics and _is_score(value) and key in after]
    names = [name for name in names if split_pass(name) is None]  # it accompanies the mean of its metric
    if all(column in before and column in after for column in LIKELIHOOD_COLUMNS):
        names += [name for name in LIKELIHOOD_METRICS if name not in before]
    if len(names) == 1:
        return names[0]
    hint = f"add --metric with one of {', '.join(names)}" if names else "write a number with the same key in both files"
    message = f"rows have {len(names)} metrics in common, not one"
    raise DataError(message, where=str(file), hint=hint, code="ambiguous-metric")


def _pair_rows(before: Rows, after: Rows, base: Path, tuned: Path) -> tuple[Rows, Rows]:
    """Return the rows of both files in the same order; raise DataError if a row has no partner."""
    code, where = "unpaired-rows", f"{base}, {tuned}"
    without = [f"{file}:{n}" for rows, file in ((before, base), (after, tuned)) for n, row in rows if "id" not in row]
    if len(without) == len(before) + len(after):
        if len(before) != len(after):
            message = f"the files have {len(before)} and {len(after)} rows, which have no `id`"
            raise DataError(message, where=where, hint="give every row an `id`", code=code)
        return before, after
    if without:  # pairing by order could combine rows with different ids
        hint = "give an `id` to all rows or to none"
        raise DataError("has no `id`, but other rows have one", where=without[0], hint=hint, code=code)
    first, second = _rows_by_id(before, base), _rows_by_id(after, tuned)
    if unpaired := first.keys() ^ second.keys():
        texts = sorted({str(key) for _, key in unpaired})
        message = f"{len(unpaired)} rows are in only one file, such as id {texts[0]}"
        hint = "score the same rows with both systems"
        if len(texts) < len(unpaired):
            hint = "write an `id` as a number in both files or as text in both"
        raise DataError(message, where=where, hint=hint, code=code)
    return list(first.values()), [second[key] for key in first]


def _rows_by_id(rows: Rows, file: Path) -> dict[Any, tuple[int, dict[str, Any]]]:
    by_id: dict[Any, tuple[int, dict[str, Any]]] = {}
    for number, row in rows:
        where = f"{file}:{number}"
        key = _lookup_key(row["id"], "id", where)
        if key in by_id:
            message = f"repeats the `id` of line {by_id[key][0]}: {row['id']}"
            raise DataError(message, where=where, hint="give every row a different `id`", code="duplicate-id")
        by_id[key] = (number, row)
    return by_id


def _group_key(row: dict[str, Any], other: dict[str, Any], where: str) -> tuple[Any, ...]:
    """Return a key for the group of a pair of rows; a pair without a group is its own group."""
    groups = [side["group"] for side in (row, other) if "group" in side]
    if len(groups) == 2 and groups[0] != groups[1]:
        message = f"the files have different groups for this row: {groups[0]!r} and {groups[1]!r}"
        raise DataError(message, where=where, hint="write the same group in both files", code="unpaired-rows")
    return ("group", _lookup_key(groups[0], "group", where)) if groups else ("row", where)


def _lookup_key(value: Any, key: str, where: str) -> tuple[bool, Any]:
    """Return a hashable key that distinguishes 1 from true; raise DataError for a list or an object."""
    if isinstance(value, list | dict):
        hint = f"write `{key}` as text or a number"
        raise DataError(f"`{key}` is {value!r}, not text or a number", where=where, hint=hint, code="wrong-value")
    return isinstance(value, bool), value


def _check_values(row: dict[str, Any], metric: str, where: str) -> dict[str, Any]:
    """Return a row with its values of a metric as floats; a failed row is returned unchanged.

    Raises:
        DataError: a value is not a finite number.
    """
    if row.get("failed"):
        return row
    columns = LIKELIHOOD_COLUMNS if likelihood_of(metric, [row]) and "tokens" in row else (metric,)
    for name in columns:
        if not _is_score(row.get(name)):
            message = f"`{name}` is {row.get(name)!r}, not a finite number"
            hint = "write the row's score, or the reason in `failed` if it has none"
            raise DataError(message, where=where, hint=hint, code="not-a-number")
    return row | {name: float(row[name]) for name in columns}


def _is_score(value: object) -> bool:
    return isinstance(value, bool) or is_number(value)
