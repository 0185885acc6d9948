"""The report of a run: all of it, unfinished, damaged, hostile, large."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from tests.unit.report.conftest import (
    build_run,
    page_of,
    plain,
    verdict_json,
    write,
)

from tunesmith.core.rundir import RunDir
from tunesmith.report.collect import collect
from tunesmith.report.sections import ROWS_EMBEDDED
from tunesmith.report.wording import headline


def test_full_run_shows_everything(tmp_path: Path) -> None:
    """Every part of a finished run is in its report."""
    page = page_of(build_run(tmp_path))
    words = plain(page.words)
    for expected in (
        "The tuned model is better: Execution accuracy rose from 2.0 % to 88.0 % "
        "(+86.0 points, 95 % interval +79.3 to +91.3, 150 rows)",
        "asked for: +5.0",
        "best checkpoint: step 105",
        "perplexity lower is better 12.40 1.31 +11.09",
        "Passed ROUGE-L changed by \u22120.8 points",
        "Cut off at the length limit 50 33.3 % 1 0.7 %",
        "Fixed 128",
        "Question: How many customers live in Porto?",
        "<|im_start|>",
        "dropped duplicate of an earlier row 61",
        "filtered `stars` is below 3 7",
        "unused beyond train_rows 1,200",
        "extra 800 40 0",
        "Training rows, of one before 31 1,204",
        "Training rows left out, of held-out ones 2 1,033",
        "Long documents are learned in blocks, and each is a row: 12 in 1,057.",
        "Row 4, block 2 of 5 train",
        "Test rows 0 1 shop.csv:18 like shop.csv:4 (0.91)",
        "median 207",
        "small enough for a laptop",
        "AMD EPYC 7B13",
        "train 10m 12s",
        "846 tokens/s",
        "2.31 GiB",
        "shop-sql 3 \u2192 staging",
    ):
        assert expected in words, expected
    assert page.tags.count("tbody") > 20
    assert len(page.source) < 400_000


@pytest.mark.parametrize(
    ("until", "sentence"),
    [
        ("start", "this run stopped before preparing the data"),
        ("prepare", "this run stopped before training"),
        ("train", "this run stopped before evaluation"),
    ],
)
def test_unfinished_run_says_what_is_missing(tmp_path: Path, until: str, sentence: str) -> None:
    """A run that stopped anywhere still has a report."""
    run = build_run(tmp_path, until=until)
    page = page_of(run)
    assert headline(collect(run)) == f"There is no verdict yet: {sentence}."
    assert "There is no verdict yet" in page.words
    assert "There are no metrics: evaluation has not finished." in page.words
    assert len(page.scripts) == 1


def test_only_the_recipe(tmp_path: Path) -> None:
    """The resolved recipe alone makes a report; without promotion in it, none is missed."""
    run = RunDir(tmp_path / "tiny" / "1")
    write(run.resolved_recipe, "name: tiny\n")
    assert "The environment was not recorded." in page_of(run).words
    assert [stage.state for stage in collect(run).stages] == ["missing", "missing", "missing", "not asked for"]


def test_evaluated_but_not_promoted(tmp_path: Path) -> None:
    """A verdict stands also where promotion did not happen."""
    page = page_of(build_run(tmp_path, until="evaluate"))
    assert "promote missing" in plain(page.words)
    assert "The tuned model is better" in page.words


def test_training_still_going(tmp_path: Path) -> None:
    """A half-written last line is passed over and left alone; of a step written twice the later counts."""
    run = build_run(tmp_path, until="prepare")
    lines = [{"kind": "step", "step": step, "loss": loss, "learning_rate": 1e-4} for step, loss in ((1, 3.0), (1, 2.5))]
    write(run.metrics, "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "step", "st')
    before = run.metrics.read_bytes()
    view = collect(run)
    assert view.training is not None
    assert view.training.steps == ((1, 2.5, 1e-4),)
    assert headline(view) == "There is no verdict yet: training has not finished (1 steps so far)."
    assert view.problems == ()
    page_of(run)
    assert run.metrics.read_bytes() == before


def test_damaged_files_are_named_and_left_out(tmp_path: Path) -> None:
    """Damage is said, and does not cost the rest of the report."""
    run = build_run(tmp_path)
    write(run.verdict, '{"verdict": "better"}')
    write(run.stage("train") / "manifest.json", "{")
    page = page_of(run)
    assert "evaluate/verdict.json is damaged" in page.words
    assert "train/manifest.json is damaged" in page.words
    assert "Answers side by side" in page.words


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """Nothing that data or a model says becomes markup, script, template or terminal control."""
    page = page_of(build_run(tmp_path, hostile=True))
    assert page.tags.count("script") == 2
    assert not {"img", "textarea", "iframe", "object", "link", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "{{7*7}}" in page.words
    assert "alert(1)" in page.words
    assert not set(page.source) & {"\x00", "\x1b", "\x9b", "\u202e", "\u202c", "\r"}
    assert "\u27e8U+202E\u27e9" in page.words
    assert "\u241b[31m" in page.words
    assert not set(page.scripts[0]) & set("<>&")
    assert "</script><script>alert(1)</script>" in "".join(str(row) for row in page.payload["rows"])


def test_hostile_names_and_broken_characters(tmp_path: Path) -> None:
    """Names of metrics and lone surrogates are as untrusted as answers."""
    run = build_run(tmp_path)
    write(run.verdict, verdict_json(metric="<b>\x1b"))
    write(run.resolved_recipe, "name: '<i>x'\n")
    write(run.stage("prepare") / "samples.json", [{"row": 1, "tokens": [{"text": "\ud800\n", "id": 5}]}])
    page = page_of(run)
    assert not {"b\x1b", "i"} & set(page.tags)
    assert "\ufffd\u21b5" in page.words


def test_no_network(tmp_path: Path) -> None:
    """The page refers to nothing outside itself and forbids it; only its own script may run."""
    page = page_of(build_run(tmp_path))
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"https?://|@import|url\(", page.source)
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'" in policy
    assert "img-src data:" in policy
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy


def test_every_link_has_its_target(tmp_path: Path) -> None:
    """The navigation leads to sections that exist, each once."""
    page = page_of(build_run(tmp_path))
    names = [value for name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert {value[1:] for name, value in page.attributes if name == "href"} <= set(names)


def test_same_run_same_report(tmp_path: Path) -> None:
    """A moved copy of a run gives the same bytes, and no path or time of the machine is in them."""
    first = page_of(build_run(tmp_path / "here")).source
    second = page_of(build_run(tmp_path / "there")).source
    assert first == second
    assert str(tmp_path) not in first


def test_many_rows_are_capped_and_said(tmp_path: Path) -> None:
    """At most so many rows are embedded, and those that got worse are always among them."""
    run = build_run(tmp_path, rows=ROWS_EMBEDDED + 300, until="evaluate")
    scores = [{"id": f"r{row}", "execution": float(row < ROWS_EMBEDDED + 299)} for row in range(ROWS_EMBEDDED + 300)]
    write(run.evaluation("tuned") / "scores.jsonl", scores)
    write(run.evaluation("base") / "scores.jsonl", [{**score, "execution": 1.0} for score in scores])
    page = page_of(run)
    assert len(page.payload["rows"]) == ROWS_EMBEDDED
    assert page.payload["rows"][-1][3] == "broken"
    assert "This file holds 2,000 of the 2,300 rows" in page.words
    assert len(page.source) < 3_000_000


def test_filters_follow_the_metric(tmp_path: Path) -> None:
    """Answers that are right or wrong are fixed or broken; graded ones are better or worse."""
    run = build_run(tmp_path)
    assert page_of(run).payload["badges"]["wrong"] == "Both wrong"
    scores = [{"id": f"r{row}", "execution": 0.5} for row in range(150)]
    write(run.evaluation("tuned") / "scores.jsonl", scores)
    assert page_of(run).payload["badges"] == {
        "all": "All", "fixed": "Better", "broken": "Worse", "even": "Equal score", "changed": "Changed"
    }  # fmt: skip


def test_text_task_without_references(tmp_path: Path) -> None:
    """A language model's rows have no reference; perplexity comes from their likelihoods, lower is better."""
    run = build_run(tmp_path, until="train")
    rows = [{"id": f"r{row}", "row": row, "prompt": "A young", "prediction": f" man {row}", "reference": None,
             "new_tokens": 3, "stopped": True, "error": None} for row in range(3)]  # fmt: skip
    for name, likelihood in (("base", -30.0), ("tuned", -20.0)):
        write(run.evaluation(name) / "generations.jsonl", rows)
        scores = [{"id": row["id"], "log_likelihood": likelihood, "tokens": 10, "correct": 4} for row in rows]
        write(run.evaluation(name) / "scores.jsonl", scores)
    write(run.verdict, verdict_json(metric="perplexity", base=20.1, tuned=7.4, gain=12.7, low=11.0, high=14.0))
    page = page_of(run)
    assert not page.payload["has_reference"]
    assert [row[3] for row in page.payload["rows"]] == ["fixed"] * 3
    assert page.payload["rows"][0][7][1] == ["7.39"]
