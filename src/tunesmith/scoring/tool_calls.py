"""Metrics of tool calls, and the reader of the notations in which models write them.

Notation                        Written by
`<tool_call>{...}</tool_call>`  Hermes, Qwen
`[TOOL_CALLS] [{...}]`          Mistral; also `[TOOL_CALLS]name[ARGS]{...}` of its later templates
`<|python_tag|>{...}`           Llama 3.1; several calls are separated by semicolons
`{...}` or `[{...}]`            Llama 3.1, and datasets with calls in a column

A call is {"name", "arguments"} or {"name", "parameters"}, or such an object in `function`, as in OpenAI's format. The
arguments are an object, or JSON text of one.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tunesmith.core.errors import DataError
from tunesmith.scoring.json_metrics import Leaf, iterate_leaves, parse_json, refuse_constant

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_SEPARATORS = re.compile(r"[\s;,]*")
_DECODER = json.JSONDecoder(parse_constant=refuse_constant)
_CALL_KEYS = frozenset({"name", "arguments", "parameters", "id", "type"})


class Call(NamedTuple):
    """A call of a tool; each argument is the leaves of its value, which make 1 equal 1.0, but not true."""

    name: str
    arguments: frozenset[tuple[str, frozenset[Leaf]]]


def tool_call(predictions: Sequence[str], references: Sequence[Sequence[str]], *_: Any) -> list[float]:
    """Return 1.0 for each answer with the names and arguments of a reference's calls in any order, else 0.0.

    Raises:
        DataError: a reference has no tool call.
    """
    return _best(predictions, references, lambda answer, reference: float(Counter(answer) == Counter(reference)))


def tool_call_name(predictions: Sequence[str], references: Sequence[Sequence[str]], *_: Any) -> list[float]:
    """Return 1.0 for each answer that calls the tools of a reference equally often, else 0.0; arguments are ignored.

    Raises:
        DataError: a reference has no tool call.
    """
    return _best(predictions, references, lambda answer, reference: float(_names(answer) == _names(reference)))


def tool_call_f1(predictions: Sequence[str], references: Sequence[Sequence[str]], *_: Any) -> list[float]:
    """Return F1 over the arguments of an answer's calls: the triples (tool, argument, value) of all calls together.

    A call without arguments counts as one triple. Each answer is compared with its best reference.

    Raises:
        DataError: a reference has no tool call.
    """
    return _best(predictions, references, _argument_f1)


def parse_calls(text: str) -> list[Call] | None:
    """Return the tool calls in an answer; None if it has none or they cannot be read. `[]` are no calls.

    A thought before the calls and text around the tags are ignored.
    """
    text = text.rpartition("</think>")[2].strip()
    try:
        return [_call(value) for value in _call_values(text)] if text else None
    except (ValueError, RecursionError):
        return None


def _best(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    compare: Callable[[list[Call], list[Call]], float],
) -> list[float]:
    """Return for each row the best value over its references; 0 if the answer has no call that can be read."""
    values = []
    for row, (prediction, alternatives) in enumerate(zip(predictions, references, strict=True)):
        calls, expected = parse_calls(prediction), [_reference_calls(text, row) for text in alternatives]
        values.append(0.0 if calls is None else max(compare(calls, reference) for reference in expected))
    return values


def _reference_calls(text: str, row: int) -> list[Call]:
    calls = parse_calls(text)
    if calls is None:
        hint = 'write calls as {"name": ..., "arguments": {...}} or in the model\'s notation, see docs/metrics.md; '
        hint += "leave out rows without a call"
        raise DataError("has no tool call", where=f"references[{row}]", hint=hint, code="reference-not-tool-call")
    return calls


def _names(calls: Sequence[Call]) -> Counter[str]:
    return Counter(call.name for call in calls)


def _argument_f1(answer: Sequence[Call], reference: Sequence[Call]) -> float:
    found, expected = (
        Counter((call.name, argument) for call in calls for argument in call.arguments or [None])
        for calls in (answer, reference)
    )
    total = found.total() + expected.total()
    return 2 * (found & expected).total() / total if total else 1.0


def _call_values(text: str) -> Iterator[Any]:
    """Yield each call in a text as a JSON value; raise ValueError if there is other text where a call should be."""
    if "<tool_call>" in text:
        for piece in _TAGGED.findall(text):
            yield from _json_values(piece)
    elif "[TOOL_CALLS]" in text:
        for piece in text.split("[TOOL_CALLS]")[1:]:
            name, has_name, arguments = piece.partition("[ARGS]")
            if has_name:  # an id may be between them
                yield {"name": name.partition("[CALL_ID]")[0].strip(), "arguments": arguments}
            else:
                yield from _json_values(piece)
    else:
        yield from _json_values(text.rpartition("<|python_tag|>")[2])


def _json_values(text: str) -> Iterator[Any]:
    """Yield the JSON values of a text, and each entry of those that are lists."""
    position, end = _skip_separators(text, 0), len(text)
    if position == end:
        raise ValueError("no JSON value")
    while position < end:
        value, position = _DECODER.raw_decode(text, position)
        yield from value if isinstance(value, list) else [value]
        position = _skip_separators(text, position)


def _skip_separators(text: str, position: int) -> int:
    found = _SEPARATORS.match(text, position)
    return found.end() if found else position


def _call(value: Any) -> Call:
    """Return a JSON value as a call; raise ValueError if it is none."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value.keys() <= _CALL_KEYS:
        raise ValueError("not a call")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = parse_json(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict | None):
        raise ValueError("the arguments are not an object")
    leaves = {(name, frozenset(iterate_leaves(argument))) for name, argument in (arguments or {}).items()}
    return Call(value["name"], frozenset(leaves))
