"""Speed of several processes on this machine, against the estimate of `plan` from the speed of one."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.versus.chart import draw_processes
from benchmarks.versus.entries import Entry, entry, skipped
from benchmarks.versus.jobs import Job, make_job
from benchmarks.versus.measure import WORKERS, Measured, environment_of_ours, measure
from benchmarks.versus.plan import Plan
from benchmarks.versus.rows import ROOT, rows_of
from benchmarks.versus.spread import Spread

from tunesmith.core.rundir import RunDir

CHART = ROOT / "docs" / "benchmarks-processes.svg"
_COUNTS = (1, 2, 4)
_MOST_REPEATS = 2


class Point(NamedTuple):
    """One configuration: number of processes, sharding and tuning."""

    tuning: str
    processes: int
    sharding: str

    @property
    def arguments(self) -> list[str]:
        """The overrides of the recipe."""
        many = ["--on", "torchrun", f"launch.processes={self.processes}", f"launch.sharding={self.sharding}"]
        return many if self.processes > 1 else []


def processes(plan: Plan, say: Callable[[str], None]) -> list[Entry]:
    """Measure one and several processes in alternation, with the estimates of `plan`, and draw both."""
    max_processes = _gpus() if plan.gpu else _COUNTS[-1]
    if max_processes < 2:
        return [skipped("processes", "tunesmith", "there is one GPU, and each process needs its own")]
    link = _link(plan)
    say(f"one process sends another {link:.2f} GB/s")
    rows = rows_of("viggo", plan.steps * plan.examples_per_step + 8)
    if rows.instead:
        say(rows.instead)
    facts = {"rows": "viggo" if rows.instead is None else "demo", "link_gb_per_second": round(link, 3)}
    made = []
    for tuning in ("lora", "full"):
        job = make_job(
            plan.scratch / f"processes-{tuning}", rows.rows, steps=plan.steps, full=tuning == "full", gpu=plan.gpu,
            examples_per_step=plan.examples_per_step,
        )  # fmt: skip
        points = list(_points(tuning, 2 if plan.quick else max_processes))
        runs: dict[Point, list[tuple[Measured, dict[str, Any]]]] = {point: [] for point in points}
        for repeat in range(min(plan.repeats, _MOST_REPEATS)):
            for point in points:
                runs[point].append(_run(job, point, repeat, plan))
                run, manifest = runs[point][-1]
                say(f"{tuning}, {point.processes} x {point.sharding}: {run.error or manifest['tokens_per_second']}")
        made += [{**_entry(job, point, runs[point], link), **facts} for point in points]
    if not plan.quick:
        CHART.write_text(draw_processes(made), encoding="utf-8")
    return made


def _points(tuning: str, max_processes: int) -> Iterator[Point]:
    for count in (count for count in _COUNTS if count <= max_processes):
        yield Point(tuning, count, "none")
        if count > 1:
            yield Point(tuning, count, "full")


def _run(job: Job, point: Point, repeat: int, plan: Plan) -> tuple[Measured, dict[str, Any]]:
    """Train; return the measurements and the numbers of the run's manifest, which cover all steps as in `plan`."""
    request, log = job.for_us()
    command, run = request["arguments"]
    request = {"arguments": [command, run, *point.arguments]}
    place = job.folder / f"turn-{repeat}-{point.processes}-{point.sharding}"
    measured = measure("ours_many.py", request, place, log=log, limit_seconds=plan.run_seconds)
    return measured, RunDir(run).manifest("train") or {}


def _entry(job: Job, point: Point, runs: list[tuple[Measured, dict[str, Any]]], link: float) -> Entry:
    speeds = [facts["tokens_per_second"] for _, facts in runs if facts]
    speed = Spread.of(speeds).to_json() if speeds else None
    # From the manifest: all steps, and the rank with the highest peak.
    numbers = {
        "tokens_per_second": speed["median"] if speed else None, "tokens_per_second_spread": speed,
        "tokens_per_second_each": speeds,
        "peak_rss_gib": max((facts["peak_memory_gib"] for _, facts in runs if facts), default=None),
    }  # fmt: skip
    return entry(
        "processes", "tunesmith", [measured for measured, _ in runs], phase="alone", **point._asdict(), **numbers,
        foreseen=estimated_speed(job.folder, point, link) if speeds else None,
    )  # fmt: skip


def estimated_speed(folder: Path, point: Point, link: float) -> list[float] | None:
    """Return the lowest and highest tokens per second that `plan` estimates from the run with one process."""
    linked = [f"launch.intra_node_gb_per_second={link:.4f}"] if point.processes > 1 else []
    command = ["plan", str(folder / "recipe.yaml"), *point.arguments, *linked, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *command], capture_output=True, text=True, check=False,  # may not fit
        env=environment_of_ours(folder),
    )  # fmt: skip
    estimate: list[float] | None = json.loads(done.stdout)["total_tokens_per_second"]
    return estimate


def _gpus() -> int:
    output = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return output.stdout.count("GPU ")


def _link(plan: Plan) -> float:
    """Return the speed between two processes, in 10^9 bytes per second."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(WORKERS / "link_speed.py")], capture_output=True, text=True, check=True,
        env=environment_of_ours(plan.scratch),
    )  # fmt: skip
    return float(done.stdout)
