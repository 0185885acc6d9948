"""The command line of `./scripts/benchmark`: run benchmarks, write JSON and the page of results."""

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
    """Run the benchmarks; return 1 if systems did unequal work or a benchmark failed, else 0."""
    options = _parse(arguments)
    # Measured processes have their own process groups, so that they are stopped with their children; a signal to us
    # must still end them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = options.only or list(BENCHMARKS)
    facts = machine()
    say(describe_machine(facts))
    if busy := is_busy():
        say("warning: this machine is busy with other work, which distorts the numbers")
    place = options.scratch.resolve() if options.scratch else None  # processes start in other folders
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=place) as scratch:
        plan = _plan(options, Path(scratch), gpu=facts["gpu"] is not None, bf16=facts["has_bf16"])
        if set(names) - set(_OURS_ALONE):
            plan = _with_peers(plan)
        results, failed = {}, False
        for name in names:
            results[name] = _measured(name, plan)
            failed |= any(entry.get("unequal") or entry["system"] == "harness" for entry in results[name])
            if options.json:  # after each benchmark, so that a later failure loses nothing
                _write_json(options.json, results, facts)
    if not plan.quick and not options.no_docs:
        whole = {name: entries for name, entries in results.items() if _is_whole(entries)}
        write_sections(PAGE, whole, facts, busy=busy)
        say(f"wrote {PAGE.name}: {', '.join(whole) or 'nothing'}")
        if lost := [name for name in results if name not in whole]:
            say(f"not replaced, because something failed or there were no peers: {', '.join(lost)}")
    return 1 if failed else 0


def _is_whole(entries: list[Entry]) -> bool:
    """Return whether a section may be replaced; a result without peers must not replace one with them."""
    return not any(entry["system"] in ("harness", "peers") for entry in entries)


def say(words: str) -> None:
    """Print a line on stderr."""
    print(f"benchmark: {words}", file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description="Measure tunesmith against other trainers in alternation, and write docs/benchmarks.md.",
    )
    parser.add_argument("--quick", action="store_true", help="few steps, once, to test the harness; writes no docs")
    parser.add_argument("--only", type=_names, help=f"some of {','.join(BENCHMARKS)}; their sections are replaced")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--repeats", type=_count, help="runs of each system (default 3)")
    parser.add_argument("--steps", type=_count, help="steps of a run (default 8; the first two do not count)")
    parser.add_argument(
        "--systems",
        type=_words,
        default=(),
        help="settings of peers to try in training, such as trl-fp32,trl-fp32-1x8",
    )
    parser.add_argument("--no-docs", action="store_true", help="do not write docs/benchmarks.md")
    parser.add_argument("--scratch", type=Path, help="folder of the runs (default: temporary)")
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


def _plan(options: argparse.Namespace, scratch: Path, *, gpu: bool, bf16: bool) -> Plan:
    plan = Plan.quickly(scratch, gpu=gpu, bf16=bf16) if options.quick else Plan(scratch, gpu=gpu, bf16=bf16)
    steps = options.steps or plan.steps
    tried = min(plan.tried_steps, steps)
    repeats = options.repeats or plan.repeats
    return replace(plan, steps=steps, repeats=repeats, tried_steps=tried, systems=options.systems)


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
    except Exception as error:  # the other results must not be lost
        say(f"ERROR: {name}: {type(error).__name__}: {error}")
        return [skipped(name, "harness", f"{type(error).__name__}: {error}")]


def _write_json(path: Path, results: dict[str, list[Entry]], facts: dict[str, object]) -> None:
    records = [{**entry, "machine": facts} for entries in results.values() for entry in entries]
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
