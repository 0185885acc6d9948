"""The Markdown tables of each section of docs/benchmarks.md."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.versus.entries import Entry

_NOTHING = "not measured"
_TUNED = {"lora": "LoRA", "full": "all weights"}
_KEPT = {"none": "the model whole", "full": "sharded"}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with text in the first column and numbers in the others."""
    head = ["| " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(columns) - 1)]
    return (
        "\n".join([*head, *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)]) + "\n"
    )


def number(value: float | None) -> str:
    """Return a number with three significant digits, or whole if it is large."""
    if value is None:
        return _NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: dict[str, float] | None) -> str:
    """Return a median with the range of the repeats: `120 (110 to 131)`."""
    if values is None:
        return _NOTHING
    if values["low"] == values["high"]:
        return number(values["median"])
    return f"{number(values['median'])} ({number(values['low'])} to {number(values['high'])})"


def times(values: dict[str, float] | None) -> str:
    """Return a ratio: `2.4 (2.2 to 2.6)`; empty if there is none."""
    if values is None:
        return ""
    return f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"


def training(entries: Sequence[Entry]) -> str:
    """Return the systems that ran in alternation, then the settings that were tried, then the failures."""
    turns = [entry for entry in entries if entry.get("phase") == "in turns"]
    first = next((entry for entry in turns if entry["system"] == "tunesmith"), {})
    words = ""
    if "mean_tokens" in first:
        words = (
            f"Rows have {first['mean_tokens']:.0f} tokens on average, {first['mean_trained']:.0f} of them trained.\n\n"
        )
    words += table(
        ["system", "tokens/s", "ours / theirs", "peak GiB", "s to the first step", "loss of the first step"],
        [
            [
                f"**{entry['system']}**" if entry["system"] == "tunesmith" else entry["system"],
                spread(entry.get("tokens_per_second_spread")), times(entry.get("ratio")), _peak(entry),
                spread(entry.get("seconds_to_first_step")), _loss(entry),
            ]
            for entry in turns
        ],
    )  # fmt: skip
    tried = [entry for entry in entries if entry.get("phase") == "tried once" and entry.get("tokens_per_second")]
    if tried:
        words += "\nAll other settings, tried once for a few steps:\n\n"
        order = sorted(tried, key=lambda entry: -entry["tokens_per_second"])
        rows = [[entry["system"], number(entry["tokens_per_second"]), _peak(entry), _loss(entry)] for entry in order]
        words += table(["setting", "tokens/s", "peak GiB", "loss of the first step"], rows)
    return words + failures(entries)


def generating(entries: Sequence[Entry]) -> str:
    """Return generated tokens per second."""
    rows = [
        [
            entry["system"], spread(entry.get("tokens_per_second_spread")), times(entry.get("ratio")), _peak(entry),
            f"{entry['answers_equal']} of {entry['prompts']}" if "answers_equal" in entry else "",
        ]
        for entry in entries
        if entry.get("what")
    ]  # fmt: skip
    columns = ["system and batch", "tokens/s", "ours / theirs", "peak GiB", "answers equal to ours"]
    return table(columns, rows) + failures(entries)


def preparing(entries: Sequence[Entry]) -> str:
    """Return prepared rows per second."""
    rows = [
        [
            entry["system"], spread(entry.get("rows_per_second_spread")), times(entry.get("ratio")),
            spread(entry.get("seconds_spread")), _peak(entry),
        ]
        for entry in entries
        if entry.get("what")
    ]  # fmt: skip
    return table(["system", "rows/s", "ours / theirs", "seconds", "peak GiB"], rows) + failures(entries)


def starting(entries: Sequence[Entry]) -> str:
    """Return the seconds until the first output or step."""
    rows = [
        [f"{entry['system']}: {entry['what']}", spread(entry["seconds_spread"])]
        for entry in entries
        if entry.get("what")
    ]
    return table(["command", "seconds"], rows) + failures(entries)


def verdicts(entries: Sequence[Entry]) -> str:
    """Return the seconds to a verdict, and the scores."""
    rows = [
        [
            entry["system"], spread(entry.get("seconds_spread")), times(entry.get("ratio")), _peak(entry),
            *(f"{100 * entry[key]:.0f} %" if key in entry else "" for key in ("score_base", "score_tuned")),
            ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in entry.get("stages", {}).items()),
        ]
        for entry in entries
        if entry.get("what")
    ]  # fmt: skip
    columns = ["system", "seconds", "ours faster by", "peak GiB", "score of the base", "tuned", "seconds of its parts"]
    return table(columns, rows) + failures(entries)


def scaling(entries: Sequence[Entry]) -> str:
    """Return the chart and its numbers."""
    words = "![Tokens per second by row length, rows per step and model size](benchmarks-scaling.svg)\n\n"
    rows = [
        [
            f"{entry['series']}: {entry['at']}", number(entry.get("mean_tokens")),
            number(entry.get("examples_per_step")),
            spread(entry.get("tokens_per_second_spread")), _peak(entry),
        ]
        for entry in entries
        if entry.get("series")
    ]  # fmt: skip
    columns = ["what varies", "tokens a row", "rows a step", "tokens/s", "peak GiB"]
    return words + table(columns, rows) + failures(entries)


def processes(entries: Sequence[Entry]) -> str:
    """Return the chart, and the measurements with the estimates."""
    words = "![Tokens per second by processes, measured and estimated](benchmarks-processes.svg)\n\n"
    own = [entry for entry in entries if entry.get("processes")]
    if link := next((entry["link_gb_per_second"] for entry in own), None):
        words += f"One process sends another {number(link)} GB/s here.\n\n"
    rows = [
        [
            f"{_TUNED[entry['tuning']]}, {_KEPT[entry['sharding']]}", number(entry["processes"]),
            spread(entry.get("tokens_per_second_spread")),
            " to ".join(dict.fromkeys(map(number, entry["foreseen"] or ()))), _peak(entry),
        ]
        for entry in own
    ]  # fmt: skip
    columns = ["what is trained", "processes", "tokens/s", "estimated by `plan`", "peak GiB of one"]
    return words + table(columns, rows) + failures(entries)


def profiling(entries: Sequence[Entry]) -> str:
    """Return the share of the bound, and the profile of a step."""
    rows = [
        [
            entry["rows"], spread(entry.get("tokens_per_second_spread")), spread(entry.get("bound_tokens_per_second")),
            entry.get("bound_precision", ""), times(entry.get("share_of_bound")),
        ]
        for entry in entries
        if "rows" in entry
    ]  # fmt: skip
    words = table(["rows", "tokens/s", "products alone, tokens/s", "precision", "share reached"], rows)
    for entry in entries:
        if operations := entry.get("operations"):
            words += f"\nOne step on {entry['rows']}, by operation (self time):\n\n"
            values = [[f"`{op['name']}`", f"{100 * op['share']:.1f} %", f"{op['calls']:,}"] for op in operations[:12]]
            words += table(["operation", "share", "calls"], values)
    return words + failures(entries)


def failures(entries: Sequence[Entry]) -> str:
    """Return the systems that were not measured or failed, with their messages."""
    values = [f"- {entry['system']}: {_plain(entry['error'])}" for entry in entries if entry.get("error")]
    return "\nNot measured, or stopped early:\n\n" + "\n".join(values) + "\n" if values else ""


def _plain(text: str) -> str:
    """Return an error as code, without paths of this machine."""
    words = " ".join("..." if word.count("/") > 1 else word for word in text.replace("`", "'").split())
    return f"`{words[:200]}`"


def _peak(entry: Entry) -> str:
    if entry.get("peak_gpu_gib"):
        return f"{entry['peak_gpu_gib']:.2f} (GPU)"
    return _NOTHING if entry.get("peak_rss_gib") is None else f"{entry['peak_rss_gib']:.2f}"


def _loss(entry: Entry) -> str:
    return f"{entry['first_loss']:.4f}" if entry.get("first_loss") is not None else ""


SECTIONS: dict[str, Callable[[Sequence[Any]], str]] = {
    "dialogsum": training,
    "viggo": training,
    "dialogsum-full": training,
    "generate": generating,
    "prepare": preparing,
    "start": starting,
    "verdict": verdicts,
    "scaling": scaling,
    "processes": processes,
    "profile": profiling,
}
