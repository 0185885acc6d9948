"""Recipes with mistakes of users; the same seed gives the same recipe."""

import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.fuzzed_bytes import change_line, insert_bytes, reencode, truncate

Tree = dict[Any, Any]

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


_BYTE_MISTAKES = (truncate, insert_bytes, insert_bytes, reencode, change_line, change_line,
                _use_odd_yaml, _use_odd_yaml)  # fmt: skip
