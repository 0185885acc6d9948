"""Tiny tokenizers with published chat templates, and random conversations for them.

`PHI_4_MINI` is written for these tests after the behaviour of Phi-4-mini, which escapes results as JSON.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from tests.unit.tasks.families import byte_level, chat_data, markup, special, wrapped
from transformers.utils import chat_template_utils

from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

DATE = date(2026, 5, 1)
_FOLDER = Path(__file__).parents[2] / "support" / "chat_templates"
PHI_4_MINI = """
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|tool_response|>' + (m.content | tojson) + '<|end|>' }}
    {%- else %}
        {{- '<|' + m.role + '|>' + (m.content or '') }}
        {%- if loop.first and tools %}
            {%- for tool in tools %}{{ '<|tool|>' + (tool.function | tojson) + '<|/tool|>' }}{% endfor %}
        {%- endif %}
        {%- for call in m.tool_calls %}{{ '<|tool_call|>' + (call.function | tojson) + '<|/tool_call|>' }}{% endfor %}
        {{- '<|end|>' }}
    {%- endif %}
{%- endfor %}
{{- '<|assistant|>' if add_generation_prompt else eos_token }}
"""


class _FixedDate(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls(DATE.year, DATE.month, DATE.day, tzinfo=tz)


@dataclass(frozen=True, repr=False)
class Published:
    """A chat template with its tokenizer, and what its conversations may contain.

    Attributes:
        specials: the special tokens; the first is the beginning of a text, the last ends an answer.
        calls: the largest number of calls in an answer; 0 if the template writes none.
        text_with_calls: whether an answer with calls may have text.
        arguments: variables of the template that some conversations set.
    """

    name: str
    specials: tuple[str, ...]
    template: str = ""
    markups: tuple[str, ...] = ()
    calls: int = 0
    text_with_calls: bool = False
    has_system: bool = True
    arguments: tuple[dict[str, Any], ...] = ({},)
    every_answer: bool = True
    """Whether every answer begins as in generation, so that all can be trained on."""
    extends_prompt: bool = True
    """Whether the ids of a conversation always begin with those of the prompt for its last answer."""

    @cached_property
    def hf_tokenizer(self) -> Any:
        source = self.template or (_FOLDER / f"{self.name}.jinja").read_text()
        late = [*map(special, self.specials), *map(markup, self.markups)]
        return wrapped(
            byte_level((), late, lines_whole=True), source, bos_token=self.specials[0], eos_token=self.specials[-1]
        )

    @cached_property
    def tokenizer(self) -> TokenizerAdapter:
        return TokenizerAdapter(self.hf_tokenizer)

    def task(self, **changes: Any) -> ChatTask:
        if "strftime_now" in self.hf_tokenizer.chat_template:
            changes.setdefault("template_date", DATE)
        return ChatTask(chat_data(messages="m", **changes), self.tokenizer)

    def own_text(self, messages: Sequence[Any], tools: Any, **arguments: Any) -> str:
        text: str = self._apply(messages, tools, tokenize=False, **arguments)
        return text

    def own_ids(self, messages: Sequence[Any], tools: Any, **arguments: Any) -> list[int]:
        ids: list[int] = self._apply(messages, tools, tokenize=True, return_dict=False, **arguments)
        return ids

    def _apply(self, messages: Sequence[Any], tools: Any, **arguments: Any) -> Any:
        with patch.object(chat_template_utils, "datetime", _FixedDate):
            return self.hf_tokenizer.apply_chat_template(list(messages), tools=tools or None, **arguments)

    def own_answer(self, messages: Sequence[Any], tools: Any, **arguments: Any) -> str:
        """Return the template's text from the prompt for the last answer to the end of the conversation."""
        prompt = self.own_text(messages[:-1], tools, add_generation_prompt=True, **arguments)
        whole = self.own_text(messages, tools, **arguments)
        if not whole.startswith(prompt) and messages[0]["role"] == "system":  # Mistral's lacks the system turn now
            return self.own_answer(messages[1:], tools, **arguments)
        if not whole.startswith(prompt) and prompt.endswith("<think>\n"):  # DeepSeek-R1's drops the thought
            return f"\n</think>\n\n{messages[-1]['content']}{self.specials[-1]}"
        assert whole.startswith(prompt)
        return whole[len(prompt) :]

    def ids_after_prompt(self, messages: Sequence[Any], tools: Any, **arguments: Any) -> list[int]:
        """Return the ids of a conversation that begin with those of the prompt: transformers' own if they do."""
        prompt = self.own_ids(messages[:-1], tools, add_generation_prompt=True, **arguments)
        own = self.own_ids(messages, tools, **arguments)
        if own[: len(prompt)] == prompt or self.extends_prompt:
            return own
        answer: list[int] = self.hf_tokenizer.encode(self.own_answer(messages, tools, **arguments))
        return prompt + answer


_BAR, _BLOCK = "\uff5c", "\u2581"  # of DeepSeek's control tokens
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
PUBLISHED_TEMPLATES = {
    template.name: template
    for template in (
        Published("qwen2_5", _CHATML, markups=_TAGS[2:], calls=3, text_with_calls=True),
        Published(
            "qwen3", _CHATML, markups=_TAGS, calls=3, text_with_calls=True, every_answer=False,
            arguments=({}, {"enable_thinking": False}),
        ),
        Published(
            "llama3_1", ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            calls=1, arguments=({}, {"date_string": "1 May 2026"}, {"tools_in_user_message": False}),
        ),
        Published("gemma", ("<bos>", "<start_of_turn>", "<eos>", "<end_of_turn>"), has_system=False),
        Published("phi3", ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>", "<|end|>")),
        Published(
            "mistral_nemo", ("<s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
            "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "</s>"), calls=2, every_answer=False, extends_prompt=False,
        ),
        Published(
            "mistral_small_3_2", ("<s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]",
            "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[TOOL_RESULTS]",
            "[TOOL_CONTENT]", "[/TOOL_RESULTS]", "</s>"), calls=2, every_answer=False,
        ),
        Published("phi3_5", ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>", "<|end|>")),
        Published("phi4", ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"), markups=_TAGS[:2]),
        Published("smollm3", _CHATML, markups=_TAGS[:2], arguments=({}, {"enable_thinking": False})),
        Published(
            "qwen3_5", _CHATML, markups=_TAGS, calls=3, text_with_calls=True, every_answer=False, extends_prompt=False,
            arguments=({}, {"enable_thinking": False}),
        ),
        Published(
            "granite4", ("<|pad|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), markups=_TAGS[2:],
            calls=3, text_with_calls=True,
        ),
        Published(
            "deepseek_r1_distill", (f"<{_BAR}begin{_BLOCK}of{_BLOCK}sentence{_BAR}>", f"<{_BAR}User{_BAR}>",
            f"<{_BAR}Assistant{_BAR}>", f"<{_BAR}end{_BLOCK}of{_BLOCK}sentence{_BAR}>"), markups=_TAGS[:2],
            every_answer=False, extends_prompt=False,
        ),
        # After a system turn, the template ends the last result in generation only.
        Published("bielik3", _CHATML, markups=_TAGS[2:], calls=2, has_system=False, extends_prompt=False),
        Published(
            "gptoss", ("<|startoftext|>", "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>",
            "<|call|>", "<|return|>"), every_answer=False, arguments=({}, {"reasoning_effort": "high"}),
        ),
        Published(
            "phi_4_mini", ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|/tool|>", "<|tool_call|>",
            "<|/tool_call|>", "<|tool_response|>", "<|endoftext|>", "<|end|>"), template=PHI_4_MINI, calls=2,
            text_with_calls=True,
        ),
    )
}  # fmt: skip

_WORDS = (
    "Say one",
    'red "cat"',
    "two\nlines",
    "caf\u00e9 \u2603",
    "{x: 1}",
    "a\\b",
    "  blank",
    "\u05e9\u05dc",
    "100 %",
    "go",
)


def generated(template: Published, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Return (messages, tools, arguments of the template) of a random conversation."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(_WORDS, k=draw.randint(1, 4))).strip()

    def value(depth: int = 2) -> Any:
        kinds = [text, lambda: draw.randint(-9, 9), lambda: draw.random(), lambda: draw.choice([True, False, None])]
        if depth:
            kinds += [lambda: [value(depth - 1) for _ in range(draw.randint(0, 2))], lambda: arguments(depth - 1)]
        return draw.choice(kinds)()

    def arguments(depth: int = 2) -> dict[str, Any]:
        return {f"key_{n}": value(depth) for n in range(draw.randint(0, 3))}

    def tool(number: int) -> dict[str, Any]:
        properties = {f"key_{n}": {"type": "string", "description": text()} for n in range(draw.randint(1, 3))}
        parameters = {"type": "object", "properties": properties, "required": ["key_0"]}
        return {
            "type": "function",
            "function": {"name": f"do_{number}", "description": text(), "parameters": parameters},
        }

    tools = [tool(n) for n in range(draw.randint(1, 3))] if template.calls and draw.random() < 0.8 else []
    messages: list[dict[str, Any]] = []
    if template.has_system and draw.random() < 0.5:
        messages.append({"role": "system", "content": f"S: {text()}"})
    for turn in range(draw.randint(1, 3)):
        messages.append({"role": "user", "content": f"{turn}: {text()}"})
        if template.calls and draw.random() < 0.6:
            calls = [
                {"id": f"call{turn}{n:04}", "type": "function",
                 "function": {"name": f"do_{draw.randint(0, 2)}", "arguments": arguments()}}
                for n in range(draw.randint(1, template.calls))
            ]  # fmt: skip
            has_text = template.text_with_calls and draw.random() < 0.5
            messages.append({"role": "assistant", "content": text() if has_text else "", "tool_calls": calls})
            if draw.random() < 0.2 and turn == 0:
                break
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": json.dumps(value())} for call in calls]
        messages.append({"role": "assistant", "content": text()})
    return messages, tools, draw.choice(template.arguments)
