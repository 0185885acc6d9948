"""`score` and `verdict` for outputs that did not come from tunesmith: JSONL files in, plain values out."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.scoring.metrics import score
from tunesmith.scoring.verdict import paired_verdict


def score_file(file: Path, metrics: Sequence[str], *, database: Path | None = None) -> dict[str, Any]:
    """Score the rows {"prediction", "reference"} of a JSONL file; return {rows, mean, values}, values row by row.

    Raises:
        DataError: the file is unreadable, or a row lacks one of the two.
    """
    predictions, references = [], []
    for number, row in _rows(file):
        for key in ("prediction", "reference"):
            if key not in row:
                raise DataError(f"has no `{key}`", where=f"{file}:{number}", hint="rows are {prediction, reference}")
        if not isinstance(row["prediction"], str):
            raise DataError("`prediction` is not text", where=f"{file}:{number}")
        predictions.append(row["prediction"])
        references.append(row["reference"])
    values = score(predictions, references, metrics, database=database)
    mean = {name: sum(column) / len(column) for name, column in values.items()}
    return {"rows": len(predictions), "mean": mean, "values": values}


def score_text(result: dict[str, Any]) -> str:
    """Return the means of `score_file` as lines."""
    lines = [f"{name:14} {value:.4f}" for name, value in result["mean"].items()]
    return "\n".join([*lines, f"{'rows':14} {result['rows']}"])


def verdict_of_files(
    base: Path, tuned: Path, *, metric: str | None, min_gain: float, confidence: float, seed: int
) -> dict[str, Any]:
    """Judge two files of per-row scores; rows are paired by `id` where they have one, else by order.

    Raises:
        DataError: a file is unreadable, rows do not pair, or the metric is missing or not a number.
    """
    before, after = list(_rows(base)), list(_rows(tuned))
    metric = metric or _only_metric(before[0][1], after[0][1], base)
    if all("id" in row for _, row in (*before, *after)):
        before, after = _by_id(before, after, base, tuned)
    elif len(before) != len(after):
        raise DataError(f"{base} has {len(before)} rows and {tuned} {len(after)}", hint="give every row an `id`")
    groups = [row.get("group", number) for number, row in before]
    found = paired_verdict(
        [_value(row, metric, base, number) for number, row in before],
        [_value(row, metric, tuned, number) for number, row in after],
        groups=groups if any("group" in row for _, row in before) else None,
        min_gain=min_gain,
        confidence=confidence,
        seed=seed,
    )
    return {"metric": metric, **asdict(found)}


def verdict_text(result: dict[str, Any]) -> str:
    """Return a verdict as a sentence."""
    word = {"better": "better", "not_better": "not better", "cannot_tell": "cannot tell"}[result["verdict"]]
    text = (
        f"{word}: {result['metric']} {result['base']:.4f} -> {result['tuned']:.4f}, gain {result['gain']:+.4f} "
        f"[{result['low']:+.4f}, {result['high']:+.4f}] at {result['confidence']:.0%}, {result['rows']} rows"
    )
    needed = result["rows_needed"]
    return f"{text}; about {needed} rows would settle it" if needed else text


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(file)) from error
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=str(file)) from error
    empty = True
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"is not valid JSON: {error}", where=f"{file}:{number}") from error
        if not isinstance(row, dict):
            raise DataError("is not a JSON object", where=f"{file}:{number}")
        empty = False
        yield number, row
    if empty:
        raise DataError("has no rows", where=str(file))


def _only_metric(before: dict[str, Any], after: dict[str, Any], file: Path) -> str:
    names = [k for k, v in before.items() if k not in ("id", "group", "row") and _is_number(v) and k in after]
    if len(names) == 1:
        return names[0]
    raise DataError(f"rows have {len(names)} values to compare", where=str(file), hint=f"--metric NAME of {names}")


def _by_id(before: list[Any], after: list[Any], base: Path, tuned: Path) -> tuple[list[Any], list[Any]]:
    first, second = ({row["id"]: (number, row) for number, row in rows} for rows in (before, after))
    for rows, unique, file in ((before, first, base), (after, second, tuned)):
        if len(unique) != len(rows):
            raise DataError("has the same `id` twice", where=str(file))
    strange = sorted(map(str, first.keys() ^ second.keys()))
    if strange:
        raise DataError(f"{len(strange)} rows are in one file only, such as id {strange[0]}", where=f"{base}, {tuned}")
    return list(first.values()), [second[key] for key in first]


def _value(row: dict[str, Any], metric: str, file: Path, number: int) -> float:
    value = row.get(metric)
    if not _is_number(value):
        raise DataError(f"`{metric}` is {value!r}, not a finite number", where=f"{file}:{number}")
    return float(value)  # type: ignore[arg-type]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
