"""Tiny tokenizers with published chat templates, and with templates of ours in the style of others that write tools.

`MISTRAL`, `PHI_4` and `SMOLLM` are written for these tests after the behaviour of Mistral Nemo, Phi-4-mini and SmolLM3:
calls that begin with a special token and need identifiers of nine characters; results escaped as JSON; an empty thought
in every answer unless the model is to think.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.unit.tasks.families import byte_level, chat_data, markup, special, wrapped

from tunesmith.tasks.chat import ChatTask
from tunesmith.tasks.tokenizer import TokenizerAdapter

_FOLDER = Path(__file__).parents[2] / "support" / "chat_templates"
MISTRAL = """
{{- bos_token }}
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- if tools is not none and m == asked[-1] %}
            {{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST]' + m.content + '[/INST]' }}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in m.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + ('' if loop.last else ', ') }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif m.role == 'assistant' %}
        {{- m.content + eos_token }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS]{"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('no such role') }}
    {%- endif %}
{%- endfor %}
"""
PHI_4 = """
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
SMOLLM = """
{%- set thinks = enable_thinking is not defined or enable_thinking %}
{%- set begin = '<|im_start|>assistant\n' + ('' if thinks else '<think>\n\n</think>\n') %}
{{- '<|im_start|>system\nReasoning: ' + (thinks | string) + '\n' }}
{{- messages[0].content if messages[0].role == 'system' else 'Help.' }}{{ '<|im_end|>\n' }}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}{{ begin + m.content.lstrip('\n') + '<|im_end|>\n' }}
    {%- elif m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{{- begin if add_generation_prompt }}
"""


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
        return ChatTask(chat_data(messages="m", **changes), self.tokenizer)

    def own_text(self, messages: Sequence[Any], tools: Any, **arguments: Any) -> str:
        text: str = self.hf_tokenizer.apply_chat_template(
            list(messages), tools=tools or None, tokenize=False, **arguments
        )
        return text

    def own_ids(self, messages: Sequence[Any], tools: Any, **arguments: Any) -> list[int]:
        ids: list[int] = self.hf_tokenizer.apply_chat_template(
            list(messages), tools=tools or None, tokenize=True, return_dict=False, **arguments
        )
        return ids


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
            "mistral", ("<s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
            "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "</s>"), template=MISTRAL, calls=2, has_system=False,
        ),
        Published(
            "phi_4", ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|/tool|>", "<|tool_call|>",
            "<|/tool_call|>", "<|tool_response|>", "<|endoftext|>", "<|end|>"), template=PHI_4, calls=2,
            text_with_calls=True,
        ),
        Published("smollm", _CHATML, template=SMOLLM, markups=_TAGS[:2], arguments=({}, {"enable_thinking": False})),
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
        messages.append({"role": "system", "content": text()})
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
