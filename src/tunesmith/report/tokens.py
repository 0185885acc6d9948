"""Rows token by token: as text for a terminal, and as one HTML file in the style of the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.files import write_text
from tunesmith.report.render import load_template, style_sheet
from tunesmith.report.sections import token_rows
from tunesmith.report.wording import block_text, count, visible, visible_token

Sample = dict[str, Any]

_TRAINED_LEGEND = "trained tokens are in \u27e6 \u27e7, "
_LEGEND = "\u00a6 separates tokens, \u21b5 is a line break, \u2025 continues the character of the previous token"
_RESET, _TRAINED, _SPECIAL, _EVERY_OTHER = "\x1b[0m", "1;32", "2", "4"


def render_text(samples: Sequence[Sample], *, colour: bool) -> str:
    """Return rows for a terminal, or for a pipe, with marks instead of colours."""
    blocks = [] if colour else [(_TRAINED_LEGEND if _has_trained(samples) else "") + _LEGEND]
    for sample in samples:
        title, counts = _header(sample)
        head = f"{title}  {counts}"
        body = _coloured(sample["tokens"]) if colour else _marked(sample["tokens"])
        blocks.append(f"\x1b[1m{head}{_RESET}\n{body}" if colour else f"{head}\n{body}")
    return "\n\n".join(blocks)


def write_html(samples: Sequence[Sample], path: Path) -> None:
    """Write rows as one HTML file in the style of the report, without scripts and network access."""
    rows = []
    for sample in samples:
        title, counts = _header(sample)
        rows += [{**row, "title": title, "counts": counts} for row in token_rows([sample])]
    page = load_template(Path(__file__).parent / "tokens.html.j2")
    write_text(path, page.render(rows=rows, style=style_sheet(), is_training=_has_trained(samples)) + "\n")


def _has_trained(samples: Sequence[Sample]) -> bool:
    """Return whether the samples are training rows, and not prompts and answers."""
    return any(sample["part"] == "row" for sample in samples)


def _header(sample: Sample) -> tuple[str, str]:
    """Return the title of a sample and its counts."""
    title = f"{sample['split']} row {sample['row']} ({sample['where']}){block_text(sample['block'])}"
    counts = f"{count(len(sample['tokens']))} tokens"
    if sample["part"] == "row":
        trained = sum(token["trained"] for token in sample["tokens"])
        counts += f", {count(trained)} trained, prompt {count(sample['prompt_tokens'])}"
        return visible(title), counts + (", cut" if sample["status"] == "cut" else "")
    part = sample["part"] if sample["part"] == "prompt" else f"answer of {sample['part']}"
    if sample.get("error"):
        counts = visible(f"failed: {sample['error']}")
    elif sample.get("stopped") is False:
        counts += ", cut off at the token limit"
    return visible(f"{title}, {part}"), counts


def _marked(tokens: Sequence[dict[str, Any]]) -> str:
    parts: list[str] = []
    trained = False
    for token in tokens:
        if token["trained"] != trained:
            parts.append("\u27e6" if token["trained"] else "\u27e7")
        elif parts and not parts[-1].endswith("\n"):
            parts.append("\u00a6")
        trained = token["trained"]
        parts.append(visible_token(token["text"]))
    return "".join(parts).rstrip("\n") + ("\u27e7" if trained else "")


def _coloured(tokens: Sequence[dict[str, Any]]) -> str:
    parts = []
    for place, token in enumerate(tokens):
        # Every second token is underlined, which separates tokens on dark and on light backgrounds.
        codes = [_TRAINED] * token["trained"] + [_SPECIAL] * token["special"] + [_EVERY_OTHER] * (place % 2)
        text = visible_token(token["text"])
        parts.append(f"\x1b[{';'.join(codes)}m{text}{_RESET}" if codes else text)
    return "".join(parts)
