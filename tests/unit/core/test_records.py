"""Examples and turns survive JSON; which JSON values are numbers."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.records import Example, Turn, is_number

turns = st.builds(Turn, st.sampled_from(["user", "assistant", "text"]), st.text(), st.booleans(),
                  st.lists(st.integers(0)).map(tuple),
                  st.dictionaries(st.sampled_from(["name", "tool_call_id"]), st.text()))  # fmt: skip
examples = st.builds(Example, st.text(), st.integers(1), st.text(), st.lists(turns, max_size=4).map(tuple))


@given(examples)
def test_an_example_survives_json(example: Example) -> None:
    assert Example.from_json(json.loads(json.dumps(example.to_json()))) == example


def test_the_full_text_of_a_turn_has_its_tool_calls() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Z\u00fcrich"}}}
    assert Turn("assistant", "", trained=True, keys={"tool_calls": [call]}).full_text == json.dumps(
        call["function"], ensure_ascii=False
    )
    assert Turn("assistant", "So:", trained=True, keys={"tool_calls": [call, call]}).full_text.startswith("So:\n{")
    assert Turn("tool", "7", trained=False, keys={"name": "f"}).full_text == "7"


def test_a_turn_without_ids_has_no_ids_in_json() -> None:
    assert Turn("text", "one", trained=True).to_json() == {"role": "text", "text": "one", "trained": True}


@pytest.mark.parametrize("value", [True, False, None, "1", [1], math.nan, math.inf, 10**400])
def test_is_number_refuses_other_values(value: Any) -> None:
    assert not is_number(value)
    assert is_number(0)
    assert is_number(-1.5)
