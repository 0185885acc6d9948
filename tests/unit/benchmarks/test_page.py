"""The page of results: sections of measured benchmarks are replaced, and other text stays."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from benchmarks.versus.chart import draw, draw_processes
from benchmarks.versus.entries import entry, skipped, timed
from benchmarks.versus.measure import Measured
from benchmarks.versus.page import PAGE, NoPlace, replaced, section, write_sections
from benchmarks.versus.peers_environment import CannotMake, peers_python
from benchmarks.versus.run import BENCHMARKS, _is_whole, main
from benchmarks.versus.sections import SECTIONS, spread, table

MACHINE = {"cores": 2, "cpu": "Some CPU", "isa": ["avx2"], "memory_gib": 23.5, "gpu": None}


def run(speed: float) -> Measured:
    steps = [{"step": n, "seconds": 1.0, "tokens": speed, "loss": 2.0} for n in (1, 2, 3)]
    return Measured(steps, 9.0, 4.0, {"peak_rss_gib": 1.5, "versions": {"torch": "2"}})


def example(name: str) -> list[dict[str, Any]]:
    ours = entry(name, "tunesmith", [run(300), run(310)], phase="in turns", rows="viggo", mean_tokens=9, mean_trained=3)
    theirs = entry(name, "trl-fp32", [run(100), run(100)], ratio=[3.0, 3.1], phase="in turns", first_loss=2.0)
    slow = entry(name, "trl-default", [run(9)], phase="tried once")
    return [ours, theirs, slow, skipped(name, "unsloth-bf16", "Error: in /some/long/path | here")]


def test_replaced_changes_one_section() -> None:
    page = "# T\n<!-- measured: a -->\nold\n<!-- end of a -->\nhand\n<!-- measured: b -->\nb\n<!-- end of b -->\n"
    assert replaced(page, "a", "new\n\n") == page.replace("old", "new")
    assert replaced(replaced(page, "a", "new"), "a", "old") == page


@pytest.mark.parametrize("page", ["", "<!-- measured: a -->\n", "<!-- end of a --><!-- measured: a -->\n"])
def test_a_page_without_markers_is_refused(page: str) -> None:
    with pytest.raises(NoPlace) as caught:
        replaced(page, "a", "new")
    assert "end of a" in str(caught.value)


def test_every_benchmark_has_a_section_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in BENCHMARKS:
        assert replaced(text, name, "new") != text
    assert SECTIONS.keys() == BENCHMARKS.keys()


def test_write_sections_keeps_the_other_text(tmp_path: Path) -> None:
    copy = tmp_path / "benchmarks.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_sections(copy, {"viggo": example("viggo")}, MACHINE, busy=True)
    text = copy.read_text(encoding="utf-8")
    assert replaced(text, "viggo", "") == replaced(PAGE.read_text(encoding="utf-8"), "viggo", "")
    assert "| trl-fp32 | 100 | 3.05 (3.00 to 3.10) | 1.50 | 4 | 2.0000 |" in text


def test_a_result_without_peers_is_not_whole() -> None:
    assert _is_whole(example("viggo"))
    assert not _is_whole([*example("viggo"), skipped("viggo", "peers", "no network")])
    assert not _is_whole([skipped("viggo", "harness", "Unequal: other tokens")])


def test_a_section_has_machine_versions_numbers_and_failures() -> None:
    text = section("viggo", example("viggo"), MACHINE, busy=True)
    assert "on 2 cores of Some CPU (avx2), 24 GiB; torch 2." in text
    assert "machine was busy" in text
    assert "| **tunesmith** | 305 (300 to 310) |" in text
    assert "tried once" in text
    assert "- unsloth-bf16: `Error: in ... | here`" in text


@pytest.mark.parametrize("name", ["generate", "prepare", "start", "verdict", "scaling", "processes", "profile"])
def test_every_section_works_with_few_results(name: str) -> None:
    made = [
        timed(name, "tunesmith", "plan", [1.0, 2.0]),
        timed(name, "trl", "plan", [], error="does not start"),
        skipped(name, "peers", "no network"),
    ]
    text = section(name, made, MACHINE, busy=False)
    assert "no network" in text
    assert "busy" not in text


def test_numbers_have_three_significant_digits() -> None:
    assert spread({"median": 1234.5, "low": 999.6, "high": 2000.0}) == "1,234 (1,000 to 2,000)"
    assert spread({"median": 1.234, "low": 1.234, "high": 1.234}) == "1.23"
    assert spread(None) == "not measured"
    assert table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n|---|--:|\n| x/y | 1 |\n"


def test_the_scaling_chart_is_a_valid_svg() -> None:
    places = [("row length", "64"), ("row length", "4096"), ("rows a step", "1"), ("rows a step", "64")]
    places += [("model size", "135M"), ("model size", "1.1B"), ("packing", "never")]
    points = [{"series": series, "at": at, "tokens_per_second": 100.0 + n} for n, (series, at) in enumerate(places)]
    drawn = ElementTree.fromstring(draw([*points, {"series": "row length", "at": "9", "tokens_per_second": None}]))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawn.findall(".//{*}circle")) == 6


def test_the_processes_chart_shows_measurements_and_estimates() -> None:
    points: list[dict[str, Any]] = [
        {
            "system": "tunesmith", "tuning": tuning, "processes": count, "sharding": sharding, "peak_rss_gib": 1.0,
            "tokens_per_second": 90.0, "tokens_per_second_spread": {"median": 90.0, "low": 90.0, "high": 90.0},
            "foreseen": [80.0, 100.0], "link_gb_per_second": 1.5,
        }
        for tuning in ("lora", "full")
        for count, sharding in ((1, "none"), (2, "none"), (2, "full"))
    ]  # fmt: skip
    drawn = ElementTree.fromstring(draw_processes(points))
    assert len(drawn.findall(".//{*}circle")) == 2 * (2 + 2)
    assert len(drawn.findall(".//{*}line[@class='bar']")) == 2 * (2 + 2)
    text = section("processes", points, MACHINE, busy=False)
    assert "One process sends another 1.5 GB/s here." in text
    assert "| all weights, sharded | 2 | 90 | 80 to 100 | 1.00 |" in text


@pytest.mark.parametrize("options", [["--only", "vigo"], ["--only", ","], ["--repeats", "0"], ["--stepz", "3"]])
def test_wrong_options_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(options)
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_missing_peers_python_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEERS_PYTHON", str(tmp_path / "python"))
    with pytest.raises(CannotMake) as caught:
        peers_python(print)
    assert "PEERS_PYTHON" in str(caught.value)
