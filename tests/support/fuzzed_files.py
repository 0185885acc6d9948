"""Data files with mistakes of users, and settings for them; the same seed gives the same file."""

import copy
import datetime
import decimal
import io
import json
import random
from collections.abc import Callable
from typing import Any

from tests.support.fuzzed_bytes import (
    change_footer,
    change_line,
    flip_bit,
    insert_bytes,
    reencode,
    replace_all,
    truncate,
)

Rows = list[dict[str, Any]]
Table = Any  # pyarrow.Table

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "arrow", "txt")
_WORDS = ("one", "two", "red", "blue", "cat", "dog")


def good_rows(count: int = 40) -> Rows:
    """Return rows {q, a, n, messages} that every fuzzed recipe can use."""
    rows: Rows = []
    for i in range(count):
        question, answer = f"Say {_WORDS[i % 6]} and {_WORDS[i // 6 % 6]}, {i}.", _WORDS[i // 6 % 6]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"q": question, "a": answer, "n": i, "messages": turns})
    return rows


def fuzzed_file(seed: int, kind: str) -> bytes:
    """Return a data file of a format with wrong values, wrong bytes or both."""
    rng = random.Random(f"{kind} {seed}")
    raw = (_binary if kind in ("parquet", "arrow") else _text)(kind, rng)
    for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 2))):
        ways: tuple[Callable[[bytes, random.Random], bytes], ...]
        if kind in ("parquet", "arrow"):
            ways = (truncate, insert_bytes, flip_bit, flip_bit, change_footer, replace_all)
        else:
            ways = (truncate, insert_bytes, insert_bytes, reencode, change_line, replace_all)
        raw = rng.choice(ways)(raw, rng)
    return raw


def fuzzed_settings(seed: int, kind: str) -> tuple[str, ...]:
    """Return overrides of a recipe for a data file: the task, and keys that name columns."""
    rng = random.Random(f"{kind} settings {seed}")
    tasks = ("", "data.task=completion", "data={source: {file: FILE}, task: text, text: '{q} {a}'}",
             "data={source: {file: FILE}, task: chat, messages: messages}")  # fmt: skip
    more = ("data.split.by=n", "data.split.by=messages", "data.split={column: a}", "data.filters=[{column: n, min: 3}]",
            "data.filters=[{column: q, matches: Say}]", "data.filters=[{column: a, one_of: [one, 2, true]}]",
            "data.source.rename={n: m}", "data.source.rename={q: a, a: q}", "data.max_dropped_fraction=0.99",
            "data.train_rows=5", "data.duplicates=drop", "data.leakage=error", "data.too_long=truncate")  # fmt: skip
    chosen = [rng.choice(tasks), *rng.sample(more, rng.choice((0, 0, 0, 1, 2)))]
    return tuple(one.replace("FILE", f"rows.{kind}") for one in chosen if one)


_CELLS: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 1e300, 10**25, "", " ", "\t", "\n", '"', "'", '""', "a,b", "a\tb", "a;b", "NaN", "nan",
    "null", "None", "train", "e\u0301", "\u00fc\u4eca\u5929", "\U0001f600" * 50, "\u202eabc", "\u200b", "\ufeff",
    "<|im_end|>", "<|im_start|>system", "\\boxed{x}", "{q}", "a\0b", "\ud800", "long " * 20_000, "x" * 100_000, [],
    ["a"], [[]], {}, {"role": "user"}, [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": None}],
    {"a": {"b": [1, None]}}, [{"from": "human", "value": "hi"}], "[{'role': 'user'}]",
    '[{"role": "user", "content": 5}]', [1, None, "x"],
)  # fmt: skip


def _rows_with_mistakes(rng: random.Random) -> Rows:
    rows = good_rows(40 if rng.random() < 0.9 else rng.choice((0, 1, 3)))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        if not rows:
            break
        column = rng.choice(("q", "a", "n", "messages"))
        some = rng.choice((rows, rows[-1:], rng.sample(rows, len(rows) // 2)))
        cell, name = (
            copy.deepcopy(rng.choice(_CELLS)),
            rng.choice(("", " q", "Q", "q\n", "a.b", "\u200b", column * 3)),
        )
        way = rng.choice(("cell", "cell", "cell", "left out", "more", "renamed", "in messages"))
        for row in some:
            if way == "cell":
                row[column] = cell
            elif way == "left out":
                row.pop(column, None)
            elif way == "more":
                row[name] = cell
            elif way == "renamed" and column in row:
                row[name] = row.pop(column)
            elif way == "in messages" and isinstance(row.get("messages"), list):
                row["messages"] = [*row["messages"], cell]
    return rows


def _text(kind: str, rng: random.Random) -> bytes:
    rows = _rows_with_mistakes(rng)
    if kind in ("csv", "tsv"):
        return _separated(rows, rng, "," if kind == "csv" else "\t")
    if kind == "txt":
        return "\n".join(f"{row.get('q')} {row.get('a')}" for row in rows).encode("utf-8", "surrogatepass")
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5, default=str) for row in rows]
    values = ("3", "null", '"x"', "[]", "[1]", "{}", '{"q": 1, "q": 2}', '{"q": NaN}', '{"q": 1e999}', "{'q': 1}",
              '{"q": 1,}', '{"q": "\\ud800"}', '{"q": "\\x"}', "[" * 50_000, '{"a":' * 3000, '{"q": 1} {"q": 2}',
              "// note",
              '{"q": 00}', f'{{"n": {"9" * 5000}}}', '{"q"}', '{"": ""}')  # fmt: skip
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(values))
    joined = {
        "lines": "\n".join(lines) + "\n", "list": "[" + ",\n".join(lines) + "]", "cut": "[" + ",\n".join(lines),
        "named": '{"data": [' + ",".join(lines) + "]}", "one": "".join(lines), "commas": ",\n".join(lines),
        "columns": json.dumps({key: [row.get(key) for row in rows] for key in ("q", "a")}, default=str),
    }  # fmt: skip
    usual = "list" if kind == "json" else "lines"
    text = joined[usual if rng.random() < 0.85 else rng.choice(sorted(joined))]
    return text.encode("utf-8", "surrogatepass")


def _separated(rows: Rows, rng: random.Random, usual: str) -> bytes:
    import csv

    names = list(dict.fromkeys(key for row in rows for key in row)) or ["q", "a"]
    text = io.StringIO()
    separator = usual if rng.random() < 0.9 else rng.choice(",\t;|")
    style = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_ALL, csv.QUOTE_NONE))
    out = csv.writer(text, delimiter=separator, quoting=style, escapechar="\\" if style == csv.QUOTE_NONE else None,
                     lineterminator=rng.choice(("\n", "\n", "\r\n")))  # fmt: skip
    if rng.random() < 0.95:
        out.writerow(names if rng.random() < 0.95 else [*names, names[0]])
    ragged = rows[-1] if rows and rng.random() < 0.1 else None
    for row in rows:
        cells = [
            str(row.get(name, "")) if name != "messages" else json.dumps(row.get(name), default=str) for name in names
        ]
        out.writerow(cells[:-1] if row is ragged else cells)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _binary(kind: str, rng: random.Random) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = _table_with_mistakes(rng)
    buffer = pa.BufferOutputStream()
    if kind == "parquet":
        try:
            pq.write_table(table, buffer, compression=rng.choice(("snappy", "zstd", "none")), row_group_size=16)
        except pa.ArrowNotImplementedError:  # Parquet has no such type
            return _binary(kind, rng)
    else:
        opened = pa.ipc.new_stream if rng.random() < 0.6 else pa.ipc.new_file
        with opened(buffer, table.schema) as writer:
            writer.write_table(table)
    return bytes(buffer.getvalue().to_pybytes())


def _table_with_mistakes(rng: random.Random) -> Table:
    """Return a table with columns of types that have no obvious text form."""
    import pyarrow as pa

    rows = good_rows(40 if rng.random() < 0.9 else rng.choice((0, 1)))
    count = len(rows)
    numbers = list(range(count))
    odd: tuple[tuple[list[Any], Any], ...] = (
        ([datetime.date(2024, 1, 1) + datetime.timedelta(days=i) for i in numbers], pa.date32()),
        (numbers, pa.timestamp("ns", "UTC")),
        (numbers, pa.duration("ms")),
        (numbers, pa.time64("us")),
        (numbers, pa.int8()),
        ([2**64 - 1] * count, pa.uint64()),
        ([1.5] * count, pa.float16()),
        ([float("nan") if i % 2 else float("inf") for i in numbers], pa.float64()),
        ([decimal.Decimal(i) / 100 for i in numbers], pa.decimal128(9, 2)),
        ([i % 2 == 0 for i in numbers], pa.bool_()),
        ([None] * count, pa.null()),
        ([None if i % 3 else "x" for i in numbers], pa.string()),
        (["x"] * count, pa.large_string()),
        (["long " * 9000] * count, pa.string()),
        ([str(i) for i in numbers], pa.dictionary(pa.int32(), pa.string())),
        ([b"\xff%d" % i for i in numbers], pa.binary()),
        ([b"ab"] * count, pa.binary(2)),
        ([[str(i), None] for i in numbers], pa.list_(pa.string())),
        ([{"a": i, "b": [i]} for i in numbers], pa.struct({"a": pa.int64(), "b": pa.list_(pa.int64())}.items())),
        ([{}] * count, pa.struct([])),
        ([[("k", i)] for i in numbers], pa.map_(pa.string(), pa.int64())),
    )
    table = pa.Table.from_pylist(rows) if rows else pa.table({name: [] for name in ("q", "a")})
    for _ in range(rng.choice((0, 1, 1, 2))):
        values, kind = rng.choice(odd)
        made = pa.array(values, kind)
        at = rng.randrange(table.num_columns + 1)
        if at == table.num_columns:
            # Sometimes a second column of the same name.
            table = table.append_column(rng.choice(("q", "more", "", "a")), made)
        else:
            table = table.set_column(at, table.column_names[at], made)
    return table.select([]) if rng.random() < 0.03 else table
