"""The tables of each section of the page of measurements, in Markdown."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.versus.entries import Entry

_NOTHING = "not measured"
_TUNED = {"lora": "LoRA", "full": "all weights"}
_KEPT = {"none": "the model whole", "full": "layers in parts"}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is words and whose others are numbers."""
    head = ["| " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(columns) - 1)]
    return (
        "\n".join([*head, *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)]) + "\n"
    )


def number(value: float | None) -> str:
    """Return a number with as many digits as it has meaning."""
    if value is None:
        return _NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(told: dict[str, float] | None) -> str:
    """Return a median and how far repeats lie apart: `120 (110 to 131)`."""
    if told is None:
        return _NOTHING
    if told["low"] == told["high"]:
        return number(told["median"])
    return f"{number(told['median'])} ({number(told['low'])} to {number(told['high'])})"


def times(told: dict[str, float] | None) -> str:
    """Return a ratio: `2.4 (2.2 to 2.6)`, or nothing where there is none."""
    if told is None:
        return ""
    return f"{told['median']:.2f} ({told['low']:.2f} to {told['high']:.2f})"


def training(entries: Sequence[Entry]) -> str:
    """Return who ran in turns, then every setting that was tried, then what failed."""
    turns = [one for one in entries if one.get("phase") == "in turns"]
    first = next((one for one in turns if one["system"] == "tunesmith"), {})
    words = ""
    if "mean_tokens" in first:
        words = (
            f"Rows have {first['mean_tokens']:.0f} tokens on average, {first['mean_trained']:.0f} of them trained.\n\n"
        )
    words += table(
        ["system", "tokens/s", "ours / theirs", "peak GiB", "s to the first step", "loss of the first step"],
        [
            [
                f"**{one['system']}**" if one["system"] == "tunesmith" else one["system"],
                spread(one.get("tokens_per_second_spread")), times(one.get("ratio")), _peak(one),
                spread(one.get("seconds_to_first_step")), _loss(one),
            ]
            for one in turns
        ],
    )  # fmt: skip
    tried = [one for one in entries if one.get("phase") == "tried once" and one.get("tokens_per_second")]
    if tried:
        words += "\nAll other settings, tried once for a few steps:\n\n"
        order = sorted(tried, key=lambda one: -one["tokens_per_second"])
        rows = [[one["system"], number(one["tokens_per_second"]), _peak(one), _loss(one)] for one in order]
        words += table(["setting", "tokens/s", "peak GiB", "loss of the first step"], rows)
    return words + failures(entries)


def generating(entries: Sequence[Entry]) -> str:
    """Return tokens written a second."""
    rows = [
        [
            one["system"], spread(one.get("tokens_per_second_spread")), times(one.get("ratio")), _peak(one),
            f"{one['answers_equal']} of {one['prompts']}" if "answers_equal" in one else "",
        ]
        for one in entries
        if one.get("what")
    ]  # fmt: skip
    columns = ["system and batch", "tokens/s", "ours / theirs", "peak GiB", "answers equal to ours"]
    return table(columns, rows) + failures(entries)


def preparing(entries: Sequence[Entry]) -> str:
    """Return rows prepared a second."""
    rows = [
        [
            one["system"], spread(one.get("rows_per_second_spread")), times(one.get("ratio")),
            spread(one.get("seconds_spread")), _peak(one),
        ]
        for one in entries
        if one.get("what")
    ]  # fmt: skip
    return table(["system", "rows/s", "ours / theirs", "seconds", "peak GiB"], rows) + failures(entries)


def starting(entries: Sequence[Entry]) -> str:
    """Return seconds of waiting."""
    rows = [[f"{one['system']}: {one['what']}", spread(one["seconds_spread"])] for one in entries if one.get("what")]
    return table(["command", "seconds"], rows) + failures(entries)


def verdicts(entries: Sequence[Entry]) -> str:
    """Return seconds to a verdict, and what the scores were."""
    rows = [
        [
            one["system"], spread(one.get("seconds_spread")), times(one.get("ratio")), _peak(one),
            *(f"{100 * one[key]:.0f} %" if key in one else "" for key in ("score_base", "score_tuned")),
            ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in one.get("stages", {}).items()),
        ]
        for one in entries
        if one.get("what")
    ]  # fmt: skip
    columns = ["system", "seconds", "ours faster by", "peak GiB", "score of the base", "tuned", "seconds of its parts"]
    return table(columns, rows) + failures(entries)


def scaling(entries: Sequence[Entry]) -> str:
    """Return the chart and the numbers behind it."""
    words = "![Tokens a second against row length, rows a step and model size](benchmarks-scaling.svg)\n\n"
    rows = [
        [
            f"{one['series']}: {one['at']}", number(one.get("mean_tokens")), number(one.get("examples_per_step")),
            spread(one.get("tokens_per_second_spread")), _peak(one),
        ]
        for one in entries
        if one.get("series")
    ]  # fmt: skip
    columns = ["what varies", "tokens a row", "rows a step", "tokens/s", "peak GiB"]
    return words + table(columns, rows) + failures(entries)


def processes(entries: Sequence[Entry]) -> str:
    """Return the chart, and what was measured beside what was foreseen."""
    words = "![Tokens a second against processes, measured and foreseen](benchmarks-processes.svg)\n\n"
    mine = [one for one in entries if one.get("processes")]
    if link := next((one["link_gb_per_second"] for one in mine), None):
        words += f"One process sends another {number(link)} GB/s here.\n\n"
    rows = [
        [
            f"{_TUNED[one['tuning']]}, {_KEPT[one['sharding']]}", number(one["processes"]),
            spread(one.get("tokens_per_second_spread")),
            " to ".join(dict.fromkeys(map(number, one["foreseen"] or ()))), _peak(one),
        ]
        for one in mine
    ]  # fmt: skip
    columns = ["what is trained", "processes", "tokens/s", "foreseen by `plan`", "peak GiB of one"]
    return words + table(columns, rows) + failures(entries)


def profiling(entries: Sequence[Entry]) -> str:
    """Return the share of the bound, and where a step's time goes."""
    rows = [
        [
            one["rows"], spread(one.get("tokens_per_second_spread")), spread(one.get("bound_tokens_per_second")),
            one.get("bound_precision", ""), times(one.get("share_of_bound")),
        ]
        for one in entries
        if "rows" in one
    ]  # fmt: skip
    words = table(["rows", "tokens/s", "products alone, tokens/s", "precision", "share reached"], rows)
    for one in entries:
        if operations := one.get("operations"):
            words += f"\nOne step on {one['rows']}, by operation (time of its own):\n\n"
            told = [[f"`{op['name']}`", f"{100 * op['share']:.1f} %", f"{op['calls']:,}"] for op in operations[:12]]
            words += table(["operation", "share", "calls"], told)
    return words + failures(entries)


def failures(entries: Sequence[Entry]) -> str:
    """Return what was not measured or did not end well, with what it said."""
    told = [f"- {one['system']}: {_plain(one['error'])}" for one in entries if one.get("error")]
    return "\nNot measured, or not to the end:\n\n" + "\n".join(told) + "\n" if told else ""


def _plain(text: str) -> str:
    """Return an error as code, without what belongs to one machine only."""
    words = " ".join("..." if word.count("/") > 1 else word for word in text.replace("`", "'").split())
    return f"`{words[:200]}`"


def _peak(one: Entry) -> str:
    if one.get("peak_gpu_gib"):
        return f"{one['peak_gpu_gib']:.2f} (GPU)"
    return _NOTHING if one.get("peak_rss_gib") is None else f"{one['peak_rss_gib']:.2f}"


def _loss(one: Entry) -> str:
    return f"{one['first_loss']:.4f}" if one.get("first_loss") is not None else ""


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
