"""Recipes and data files with mistakes of users; the same seed gives the same file."""

import copy
import datetime
import decimal
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

Tree = dict[Any, Any]
Rows = list[dict[str, Any]]
Table = Any  # pyarrow.Table

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "arrow", "txt")
_WORDS = ("one", "two", "red", "blue", "cat", "dog")

# Values of a wrong type or meaning. None may reach a network or name a function with side effects.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-300, 1e300, 10**6, 10**15, 10**30, float("inf"), float("nan"), "",
    " ", "0x10", "1_000", "1e-4", "yes", "null", "auto", "all", "2024-01-01", "{", "}", "{}", "{q", "{q}", "{{q}}",
    "{q!r}", "{0}", "{q.a}", "{nope}", "\\boxed{q}", "tab\there", "bell\a", "nul\0", "\x1b[31m", "\u202e", "\ufeff",
    "\U0001f600", "e\u0301", "line\nbreak", "a" * 70_000, "../..", "/", ".", "~", "~nobody/x", "rows.jsonl",
    "rows.jsonl/", "*.jsonl", "recipe.yaml", "run:", "run:.", "run:nope#1", "nope@staging", "nope@1", "org/name",
    "org/name@main", "a/b/c", "gpt2", "json:nope", "nope:nope", ":", "loss", "rouge", "execution", "perplexity", [],
    [None], [[]], [1, "a"], ["q", "q"], {}, {"q": "a"}, {"a": {"b": {"c": []}}},
    [{"file": "rows.jsonl"}, {"file": "rows.jsonl"}], {1: 2}, {"": ""},
)  # fmt: skip


def fuzzed_recipe(seed: int, model: Path) -> bytes:
    """Return a recipe for rows.jsonl with up to four mistakes."""
    rng = random.Random(f"recipe {seed}")
    tree = _recipe(rng, model)
    if rng.random() < 0.5:  # right types only, because a wrong type ends validation before other checks
        for _ in range(rng.choice((1, 2))):
            _set_known_key(tree, rng)
        return _yaml(tree).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice((0, 1, 1, 3))):
        rng.choice(_TREE_MISTAKES)(tree, rng)
    raw = _yaml(tree).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice((0, 0, 1, 2))):
        raw = rng.choice(_BYTE_MISTAKES)(raw, rng)
    return raw


def _recipe(rng: random.Random, model: Path) -> Tree:
    tasks: tuple[Tree, ...] = (
        {"task": "chat", "prompt": "{q}", "response": "{a}", "system": "Answer."},
        {"task": "completion", "prompt": "Q: {q}\nA: ", "response": "{a}"},
        {"task": "text", "text": "{q} {a}"},
        {"task": "chat", "messages": "messages"},
    )
    return {
        "name": "fuzzed",
        "model": {"base": str(model)},
        "data": {"source": {"file": "rows.jsonl"}, **rng.choice(tasks), "split": {"valid": 0.2, "test": 0.3}},
        "tuning": {"method": "lora", "rank": 4, "alpha": 8},
        "train": {"learning_rate": 0.01, "max_steps": 2, "examples_per_step": 2},
        "evaluate": {"metrics": ["rougeL"], "primary": "rougeL", "rows": 4, "max_new_tokens": 8},
    }


def _yaml(tree: Any) -> str:
    from ruamel.yaml import YAML

    text = io.StringIO()
    writer = YAML(typ="safe")
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(tree, text)
    return text.getvalue()


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) for every value in a tree."""
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(below):
        yield tree, key
        yield from _nodes(value)


def _replace_value(tree: Tree, rng: random.Random) -> None:
    node, key = rng.choice(list(_nodes(tree)))
    node[key] = copy.deepcopy(rng.choice(_VALUES))


def _remove_key(tree: Tree, rng: random.Random) -> None:
    node, key = rng.choice(list(_nodes(tree)))
    del node[key]


def _rename_key(tree: Tree, rng: random.Random) -> None:
    node, key = rng.choice([(node, key) for node, key in _nodes(tree) if isinstance(node, dict)])
    ways: tuple[Callable[[str], Any], ...] = (
        str.upper, str.title, lambda k: k + " ", lambda k: k[:-1], lambda k: k.replace("_", "-"),
        lambda k: f"{k}\u200b", lambda _: 1, lambda _: None, lambda _: True, lambda _: "lr", lambda k: f"train.{k}",
        lambda _: (1, 2),
    )  # fmt: skip
    node[rng.choice(ways)(str(key))] = node.pop(key)


def _wrap_value(tree: Tree, rng: random.Random) -> None:
    node, key = rng.choice(list(_nodes(tree)))
    value = node[key]
    deep: Any = value
    for _ in range(rng.choice((5, 15, 60))):
        deep = [deep]
    node[key] = rng.choice(([value], {str(key): value}, {"0": value}, str(value), [value] * 3, deep))


def _move_value(tree: Tree, rng: random.Random) -> None:
    sections = [node for node, _ in _nodes(tree) if isinstance(node, dict)]
    node, key = rng.choice(list(_nodes(tree)))
    rng.choice(sections)[key if isinstance(key, str) else "x"] = copy.deepcopy(node[key])


def _set_known_key(tree: Tree, rng: random.Random) -> None:
    """Set a key of the schema to a value, usually of the right type."""
    path, schema = rng.choice(list(_settings(_schema(), tree, ())))
    number = (0, 1, 2, 3, 7, 10**9, 10**18, 10**40, -5, 0.0, 0.5, 0.999, 1e18, 1e308, 5e-324)
    by_type: dict[str, tuple[Any, ...]] = {
        "integer": number[:8], "number": number, "boolean": (True, False),
        "array": ([], [{}], ["q_proj"], ["rougeL", "rougeL"], ["q_proj", "nope"], [{"column": "q", "equals": "x"}]),
    }  # fmt: skip
    pool = schema.get("enum") or by_type.get(schema.get("type", ""), _VALUES)
    node: Any = tree
    for name in path[:-1]:
        if not isinstance(node.get(name), dict):
            node[name] = {}
        node = node[name]
    node[path[-1]] = copy.deepcopy(rng.choice(pool if rng.random() < 0.9 else _VALUES))


@cache
def _schema() -> Tree:
    from tunesmith.recipe.schema import Recipe

    return Recipe.model_json_schema()


def _settings(schema: Tree, written: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """Yield the path and the schema of every key that the recipe's kinds of sections may have."""
    if "$ref" in schema:
        yield from _settings(_schema()["$defs"][schema["$ref"].rpartition("/")[2]], written, path)
    for kind in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _settings(kind, written, path)
    written = written if isinstance(written, dict) else {}
    known = schema.get("properties", {})
    if any(one["const"] != written.get(name) for name, one in known.items() if "const" in one):
        return
    for name, one in known.items():
        yield from _settings(one, written.get(name), (*path, name))
    if path and not {"$ref", "anyOf", "oneOf", "properties"} & schema.keys():
        yield path, schema


_TREE_MISTAKES = (_replace_value, _replace_value, _remove_key, _rename_key, _wrap_value, _move_value, _set_known_key)


def _truncate(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)]


def _insert_bytes(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    pieces = (b"\0", b"\t", b"\r", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x1b", "\u2028".encode(), b"\x85", b'"', b"'",
              b"{", b"]", b": ", b"- ", b"#", b"&a ", b"*a", b"!!int ", b"!!python/object:os.system ", b"|", b"%", b"@",
              b"`", b"? ", b"\n---\n", b"\n...\n", b"\x7f" * 3, b"\xef\xbb\xbf", b"\n\n", b"\\", b",")  # fmt: skip
    return raw[:at] + rng.choice(pieces) + raw[at:]


def _reencode(raw: bytes, rng: random.Random) -> bytes:
    text = raw.decode("utf-8", "replace") + "# \u00fc\n"
    way = rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "cp037", "gzip"))
    return gzip.compress(raw, mtime=0) if way == "gzip" else text.encode(way, "replace")


def _change_line(raw: bytes, rng: random.Random) -> bytes:
    lines = raw.splitlines(keepends=True) or [b"\n"]
    at = rng.randrange(len(lines))
    line = lines[at]
    ways = (line * 2, b"", b"\t" + line, b" " + line, line.lstrip(), line.replace(b":", b" "),
            line.replace(b": ", b":"),
            line.replace(b":", b": &x", 1), line.replace(b":", b": *x #", 1), line.upper(), b"# " + line,
            line.rstrip() + b"," + b"\n", line[: len(line) // 2] + b"\n")  # fmt: skip
    lines[at] = rng.choice(ways)
    return b"".join(lines)


def _use_odd_yaml(raw: bytes, rng: random.Random) -> bytes:
    bomb = b"x0: &x0 [a, a]\n" + b"".join(b"x%d: &x%d [*x%d, *x%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 40))
    ways = (
        b"", b"null\n", b"- a\n", b"just text\n", b"# only this\n", b"{" * 3000, b"[" * 100_000, b"- " * 5000,
        b"? a\n" * 9, bomb + raw, raw + bomb, b"all: &all {name: x}\n<<: *all\n" + raw, raw + b"<<: {seed: 3}\n",
        raw + b"<<: 3\n", raw + b"<<: [*a, *b]\n", b"self: &me [*me]\n" + raw, b"self: &me {a: *me}\n" + raw,
        b"%YAML 1.1\n---\n" + raw, b"%YAML 9.9\n---\n" + raw, b"---\n" + raw + b"---\n" + raw, raw + raw,
        b"!!omap\n" + raw, raw + b"\xef\xbb\xbf", raw.replace(b"\n", b"\r\n"), raw.replace(b"\n", b"\r"),
        raw + b"? {a: b}\n: c\n", raw + b"? [a, b]\n: c\n", raw + b"when: 2024-01-01T00:00:00Z\n",
        raw + b"seed: 0o17\n", raw + b"seed: 1:30\n", raw + b"seed: .inf\n", b"a: " + b"9" * 5000 + b"\n" + raw,
        raw + b"seed: " + b"9" * 5000 + b"\n", raw * 2000, b"\n" * 100_000 + raw, json.dumps({"name": "x",
        "data": [1]}).encode(), b"<html><body>Not found</body></html>", b"\x89PNG\r\n\x1a\n",
    )  # fmt: skip
    return rng.choice(ways)


_BYTE_MISTAKES = (_truncate, _insert_bytes, _insert_bytes, _reencode, _change_line, _change_line,
                _use_odd_yaml, _use_odd_yaml)  # fmt: skip


def good_rows(count: int = 40) -> Rows:
    """Return rows {q, a, n, messages} that every recipe of this module can use."""
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
            ways = (_truncate, _insert_bytes, _flip_bit, _flip_bit, _change_footer, _replace_all)
        else:
            ways = (_truncate, _insert_bytes, _insert_bytes, _reencode, _change_line, _replace_all)
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


def _flip_bit(raw: bytes, rng: random.Random) -> bytes:
    if not raw:
        return raw
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]


def _change_footer(raw: bytes, rng: random.Random) -> bytes:
    ways = (raw[:-4], raw[:-8] + b"\xff\xff\xff\x7f" + raw[-4:], raw + b"\n", raw + raw, raw[4:], raw[: len(raw) // 2])
    return rng.choice(ways)


def _replace_all(raw: bytes, rng: random.Random) -> bytes:
    ways = (b"", b"\n", b" \n\t\n", b"\xef\xbb\xbf", b"PAR1", b"ARROW1\0\0", b"PK\x03\x04" + raw,
            gzip.compress(raw[:999], mtime=0),
            b"\x1f\x8b\x08", raw[:1], raw.replace(b"\n", b"\r"), raw.replace(b"\n", b"\n\n"), raw.replace(b'"', b"'"),
            b"\xef\xbb\xbf" + raw, raw + b"\0" * 4096,
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"<!DOCTYPE html>\n<html></html>\n",
            rng.randbytes(2000))  # fmt: skip
    return rng.choice(ways)
