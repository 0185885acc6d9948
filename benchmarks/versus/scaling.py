"""Our speed and memory by row length, rows per step, model size and packing."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.versus.chart import draw
from benchmarks.versus.entries import Entry, entry
from benchmarks.versus.jobs import BASE, Job, make_job
from benchmarks.versus.measure import Measured, environment_of_ours, measure
from benchmarks.versus.plan import Plan
from benchmarks.versus.rows import ROOT, Row, rows_of

CHART = ROOT / "docs" / "benchmarks-scaling.svg"
# Tokens of a row besides its prompt: markup, the default system turn, the answer.
_AROUND = 52
_ANSWER = " ".join(["so"] * 12)
_TOKENS_A_STEP = 4096
_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_STEPS = 4
# Few repeats, because there are twenty configurations.
_MOST_REPEATS = 2

# Published shapes: SmolLM2-360M and TinyLlama-1.1B. The weights are random, which does not change the time.
MODELS: dict[str, dict[str, int]] = {
    "360M": {
        "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
    "1.1B": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}  # fmt: skip


class Point(NamedTuple):
    """One configuration: its series, its value in the series, and its training."""

    series: str
    at: str
    rows: list[Row]
    examples_per_step: int
    model: str = "135M"
    packing: str = "auto"
    most_tokens: int = 1024


def scaling(plan: Plan, say: Callable[[str], None]) -> list[Entry]:
    """Measure every configuration in alternation, and draw the results."""
    points = list(_points(plan))
    bases = {name: str(_random_model(name, plan.scratch / "models" / name)) for name in MODELS if not plan.quick}
    jobs = [
        make_job(
            plan.scratch / "scaling" / str(number), point.rows, steps=plan.steps if plan.quick else _STEPS,
            examples_per_step=point.examples_per_step, base=bases.get(point.model, BASE),
            most_tokens=point.most_tokens, packing=point.packing, gpu=plan.gpu,
        )
        for number, point in enumerate(points)
    ]  # fmt: skip
    runs: list[list[Measured]] = [[] for _ in points]
    for repeat in range(min(plan.repeats, _MOST_REPEATS)):
        for point, job, results in zip(points, jobs, runs, strict=True):
            request, log = job.for_us()
            place = job.folder / f"turn-{repeat}"
            results.append(measure("ours_command.py", request, place, log=log, limit_seconds=plan.run_seconds))
            speed = results[-1].tokens_per_second
            say(f"{point.series} {point.at}: {results[-1].error or f'{speed:.1f} tokens/s'}")
    made = [_entry(*measured) for measured in zip(points, jobs, runs, strict=True)]
    if not plan.quick:
        CHART.write_text(draw(made), encoding="utf-8")
    return made


def _entry(point: Point, job: Job, runs: list[Measured]) -> Entry:
    facts = {
        "series": point.series, "at": point.at, "model": point.model, "packing": point.packing,
        "examples_per_step": point.examples_per_step,
        "mean_tokens": round(sum(job.tokens) / (len(job.tokens) * point.examples_per_step), 1),
    }  # fmt: skip
    return entry("scaling", "tunesmith", runs, phase="alone", **facts)


def _points(plan: Plan) -> Iterator[Point]:
    lengths, counts, models = _LENGTHS, _ROWS, ("135M", *MODELS)
    packings: tuple[str, ...] = ("never", "auto", "always")
    steps = _STEPS
    if plan.quick:
        lengths, counts, models, packings, steps = (64, 128), (1, 2), ("135M",), ("never", "auto"), plan.steps
    for length in lengths:
        size = 2 if plan.quick else max(1, _TOKENS_A_STEP // length)
        yield Point("row length", str(length), _rows_of_length(length, size * steps), size, most_tokens=8192)
    for count in counts:
        yield Point("rows a step", str(count), _rows_of_length(128, count * steps), count)
    for model in models:
        size = 2 if plan.quick else 8
        yield Point("model size", model, _rows_of_length(256, size * steps), size, model=model)
    for packing in packings:
        size = 2 if plan.quick else 8
        rows = rows_of("viggo", round(size * steps * 1.2) + 8).rows
        yield Point("packing", packing, rows, size, packing=packing)


def _rows_of_length(tokens: int, count: int) -> list[Row]:
    """Return different rows of about this many tokens; each word is one token."""
    words = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child")
    made = []
    for number in range(count + 4):
        prompt = [
            words[(number * 7 + place * 3 + place // 10 + number // 10 * place) % 10]
            for place in range(max(2, tokens - _AROUND))
        ]
        made.append({"prompt": " ".join(prompt), "response": _ANSWER})
    return made


def _random_model(name: str, folder: Path) -> Path:
    """Write a random model of a published shape with the embedded model's tokenizer, in a separate process."""
    request: dict[str, Any] = {"folder": str(folder), "shape": MODELS[name], "tokenizer": BASE}
    worker = Path(__file__).parent / "workers" / "make_model.py"
    subprocess.run(
        [sys.executable, str(worker), json.dumps(request)], check=True, env=environment_of_ours(folder),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return folder
