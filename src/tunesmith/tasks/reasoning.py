"""The thoughts of a reasoning model: found in the answers of a row, and left out of what is judged."""

import re
from dataclasses import replace
from typing import Literal

from tunesmith.core.records import Turn
from tunesmith.tasks.base import RowProblem

THOUGHT = "reasoning_content"
"""The key of a message that holds its thought."""
THOUGHT_KEYS = (THOUGHT, "reasoning", "thinking")
THOUGHT_BEGIN, THOUGHT_END = "<think>\n", "\n</think>\n\n"
"""What surrounds a thought in the content of a message, if the chat template does not read its key."""

# Answers that were collected from a model whose prompt ends with <think> begin inside the thought.
_IN_CONTENT = re.compile(r"\s*(?:<think>)?(.*?)</think>\n*(.*)", re.DOTALL)
OPEN_THOUGHT = re.compile(r"<think>\s*$")
"""The end of a prompt in which a thought begins."""
_CLOSING = re.compile(r"\s*</think>\s*")


def find_thought(turn: Turn, reasoning: Literal["keep", "strip", "mask"] | None) -> Turn:
    """Return an answer with its thought in `keys`, or without it; other turns unchanged, and all without a setting.

    Raises:
        RowProblem: the answer is only a thought, or the thought does not end.
    """
    if reasoning is None or turn.role != "assistant":
        return turn
    thought, text = turn.keys.get(THOUGHT, ""), turn.text
    if match := _IN_CONTENT.fullmatch(text):
        thought, text = thought or match[1].strip("\n"), match[2]
    elif text.lstrip().startswith("<think>"):
        raise RowProblem("a thought does not end", repr(text[-80:]), code="no-answer", hint="end it with </think>")
    if not (text.strip() or turn.keys.get("tool_calls")):
        raise RowProblem("an answer is only a thought", repr(thought[-80:]), code="no-answer")
    keys = {key: value for key, value in turn.keys.items() if key != THOUGHT}
    kept = {THOUGHT: thought} if thought.strip() and reasoning != "strip" else {}
    return replace(turn, text=text, keys={**kept, **keys})


def has_thought(text: str) -> bool:
    """Return whether an answer begins with a thought that is not blank."""
    match = _IN_CONTENT.fullmatch(text)
    return match is not None and bool(match[1].strip())


def without_thought(answer: str, *, is_opened: bool) -> str:
    """Return an answer without the thought before it; empty if the thought does not end.

    Args:
        is_opened: the prompt ends with the beginning of the thought.
    """
    _, end, text = answer.rpartition("</think>")
    is_thought = is_opened or answer.lstrip().startswith("<think>")
    return "" if is_thought and not end else text


def length_of_closing(text: str) -> int:
    """Return the length of the template's text that closes a thought, at the beginning of what follows the thought."""
    match = _CLOSING.match(text)
    return match.end() if match else len(text)
