"""The command line of `./scripts/benchmark`: measures what was asked for, writes JSON, and the page of measurements."""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.versus import generating, preparing, processes, profiling, scaling, starting, training, verdict
from benchmarks.versus.entries import Entry, skipped
from benchmarks.versus.jobs import Unequal
from benchmarks.versus.machine import describe_machine, is_busy, machine
from benchmarks.versus.page import PAGE, write_sections
from benchmarks.versus.peers_environment import CannotMake, peers_python
from benchmarks.versus.plan import Plan

Benchmark = Callable[[Plan, Callable[[str], None]], list[Entry]]

BENCHMARKS: dict[str, Benchmark] = {
    "dialogsum": training.dialogsum,
    "viggo": training.viggo,
    "dialogsum-full": training.dialogsum_full,
    "generate": generating.generating,
    "prepare": preparing.preparing,
    "start": starting.starting,
    "verdict": verdict.verdicts,
    "scaling": scaling.scaling,
    "processes": processes.processes,
    "profile": profiling.profiling,
}
_OURS_ALONE = ("scaling", "processes", "profile")


def main(arguments: Sequence[str]) -> int:
    """Measure; return the exit code: 0, or 1 where systems were not given equal work or a benchmark failed."""
    asked = _parse(arguments)
    # Measured processes are groups of their own, so that they can be stopped with all they started; who is told to end
    # must still end them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = asked.only or list(BENCHMARKS)
    found = machine()
    say(describe_machine(found))
    if busy := is_busy():
        say("warning: this machine is busy; the numbers will say more about its other work than about the systems")
    place = asked.scratch.resolve() if asked.scratch else None  # processes are started in folders of their own
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=place) as scratch:
        plan = _plan(asked, Path(scratch), gpu=found["gpu"] is not None, bf16=found["has_bf16"])
        if set(names) - set(_OURS_ALONE):
            plan = _with_peers(plan)
        results, failed = {}, False
        for name in names:
            results[name] = _measured(name, plan)
            failed |= any(one.get("unequal") or one["system"] == "harness" for one in results[name])
            if asked.json:  # after each, so that what took an hour is not lost with what comes next
                _write_json(asked.json, results, found)
    if not plan.quick and not asked.no_docs:
        whole = {name: one for name, one in results.items() if _is_whole(one)}
        write_sections(PAGE, whole, found, busy=busy)
        say(f"wrote {PAGE.name}: {', '.join(whole) or 'nothing'}")
        if lost := [name for name in results if name not in whole]:
            say(f"left as they were, because something failed or there were no peers: {', '.join(lost)}")
    return 1 if failed else 0


def _is_whole(entries: list[Entry]) -> bool:
    """Say whether a section may be replaced: one without peers would throw away what was measured beside them."""
    return not any(one["system"] in ("harness", "peers") for one in entries)


def say(words: str) -> None:
    """Tell news on stderr."""
    print(f"benchmark: {words}", file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description="Measure tunesmith beside other trainers, in turns, and write docs/benchmarks.md.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few steps, once; says nothing about speed, writes no docs"
    )
    parser.add_argument("--only", type=_names, help=f"some of {','.join(BENCHMARKS)}; their sections are replaced")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--repeats", type=_count, help="how often each system takes its turn (default 3)")
    parser.add_argument("--steps", type=_count, help="steps of a run (default 8, the first two are left out)")
    parser.add_argument(
        "--systems",
        type=_words,
        default=(),
        help="the only settings of peers that training tries, as trl-fp32,trl-fp32-1x8",
    )
    parser.add_argument("--no-docs", action="store_true", help="leave docs/benchmarks.md as it is")
    parser.add_argument("--scratch", type=Path, help="where runs are kept while they are measured (default: temporary)")
    return parser.parse_args(arguments)


def _words(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _names(text: str) -> list[str]:
    names = _words(text)
    wrong = [name for name in names if name not in BENCHMARKS]
    if wrong or not names:
        raise argparse.ArgumentTypeError(f"no benchmark `{', '.join(wrong)}`; there are {', '.join(BENCHMARKS)}")
    return list(dict.fromkeys(names))


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or more")
    return int(text)


def _plan(asked: argparse.Namespace, scratch: Path, *, gpu: bool, bf16: bool) -> Plan:
    plan = Plan.quickly(scratch, gpu=gpu, bf16=bf16) if asked.quick else Plan(scratch, gpu=gpu, bf16=bf16)
    steps = asked.steps or plan.steps
    tried = min(plan.tried_steps, steps)
    repeats = asked.repeats or plan.repeats
    return replace(plan, steps=steps, repeats=repeats, tried_steps=tried, systems=asked.systems)


def _with_peers(plan: Plan) -> Plan:
    try:
        return replace(plan, peers=peers_python(say, gpu=plan.gpu))
    except CannotMake as error:
        say(f"no peers: {error}")
        return replace(plan, no_peers=str(error))


def _measured(name: str, plan: Plan) -> list[Entry]:
    say(f"== {name}")
    try:
        return BENCHMARKS[name](plan, say)
    except Unequal as error:
        say(f"ERROR: {name}: unequal work: {error}")
        return [{**skipped(name, "harness", str(error)), "unequal": True}]
    except Exception as error:  # what was measured before, and comes after, shall not be lost
        say(f"ERROR: {name}: {type(error).__name__}: {error}")
        return [skipped(name, "harness", f"{type(error).__name__}: {error}")]


def _write_json(path: Path, results: dict[str, list[Entry]], found: dict[str, object]) -> None:
    told = [{**one, "machine": found} for entries in results.values() for one in entries]
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
