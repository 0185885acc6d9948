"""The report of a run that is finished, unfinished, damaged, hostile or large."""

import base64
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
from tests.unit.report.conftest import (
    MINUS,
    build_run,
    page_of,
    plain,
    verdict_json,
    write,
)

from tunesmith.core.rundir import RunDir
from tunesmith.core.stages import EVALUATE, PREPARE, TRAIN, Stage
from tunesmith.report.collect import collect
from tunesmith.report.sections import MAX_EMBEDDED_ROWS
from tunesmith.report.text import side_by_side
from tunesmith.report.wording import CONCLUSIONS, headline


def test_report_of_a_finished_run_has_every_part(tmp_path: Path) -> None:
    page = page_of(build_run(tmp_path))
    words = plain(page.words)
    for expected in (
        "from 2.0 % to 88.0 % (+86.0 points, 95 % interval +79.3 to +91.3, 150 rows)",
        "+5.0",
        "step 105",
        "12.40 1.31 +11.09",
        "\u22120.8 points",
        "50 33.3 % 1 0.7 %",
        "Fixed 128",
        "Question: How many customers live in Porto?",
        "<|im_start|>",
        "dropped duplicate of an earlier row 61",
        "filtered `stars` is below 3 7",
        "unused beyond train_rows 1,200",
        "extra 800 40 0",
        "31 1,204",
        "2 1,033",
        "1,057",
        "Row 4, block 2 of 5 train",
        "0 1 shop.csv:18 like shop.csv:4 (0.91)",
        "207",
        "small enough for a laptop",
        "AMD EPYC 7B13",
        "846 tokens/s",
        "2.31 GiB",
        "shop-sql 3 \u2192 staging",
    ):
        assert expected in words, expected
    assert page.tags.count("tbody") > 20
    assert len(page.source) < 400_000


def test_a_further_set_has_a_table_with_its_guarded_metric_and_the_others(tmp_path: Path) -> None:
    words = plain(page_of(build_run(tmp_path)).words)
    [table] = re.findall(r"Held-out set letters \(80 rows\)(.*?)Guards", words)
    assert re.search(rf"token accuracy guarded 43.1 % 42.8 % {MINUS}0.3 {MINUS}0.9 to \+0.3", table)
    assert re.search(rf"perplexity lower is better 15.20 16.10 {MINUS}0.90 {MINUS}1.30 to {MINUS}0.50", table)


@pytest.mark.parametrize(("until", "missing"), [("start", PREPARE), ("prepare", TRAIN), ("train", EVALUATE)])
def test_report_of_an_unfinished_run_names_the_missing_stage(tmp_path: Path, until: str, missing: Stage) -> None:
    run = build_run(tmp_path, until=until)
    page = page_of(run)
    assert missing.activity in headline(collect(run))
    assert missing.activity in page.words
    assert len(page.scripts) == 1


def test_resolved_recipe_alone_makes_a_report(tmp_path: Path) -> None:
    """Without a `promote` section, promotion is not missing."""
    run = RunDir(tmp_path / "tiny" / "1")
    write(run.resolved_recipe, "name: tiny\n")
    page_of(run)
    assert [stage.state for stage in collect(run).stages] == ["missing", "missing", "missing", "not requested"]


def test_report_of_a_run_that_was_not_promoted_has_the_verdict(tmp_path: Path) -> None:
    page = page_of(build_run(tmp_path, until="evaluate"))
    assert "promote missing" in plain(page.words)
    assert CONCLUSIONS["better"] in page.words


def test_report_during_training_skips_a_partial_last_line(tmp_path: Path) -> None:
    """The file is not changed. If a step was written twice, the later line counts."""
    run = build_run(tmp_path, until="prepare")
    lines = [{"kind": "step", "step": step, "loss": loss, "learning_rate": 1e-4} for step, loss in ((1, 3.0), (1, 2.5))]
    write(run.metrics, "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "step", "st')
    before = run.metrics.read_bytes()
    view = collect(run)
    assert view.training is not None
    assert view.training.steps == ((1, 2.5, 1e-4),)
    assert "1 steps" in headline(view)
    assert view.problems == ()
    page_of(run)
    assert run.metrics.read_bytes() == before


def test_report_names_damaged_files_and_shows_the_rest(tmp_path: Path) -> None:
    run = build_run(tmp_path)
    write(run.verdict, '{"verdict": "better"}')
    write(run.stage("train") / "manifest.json", "{")
    page = page_of(run)
    verdict, manifest = sorted(collect(run).problems)
    assert verdict.startswith("evaluate/verdict.json")
    assert manifest.startswith("train/manifest.json")
    assert verdict in page.words
    assert manifest in page.words
    assert len(page.payload["rows"]) == 150


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """Text of the data or a model never becomes markup, script, template or terminal control."""
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


def test_hostile_metric_names_and_broken_characters_stay_text(tmp_path: Path) -> None:
    """Names of metrics and lone surrogates are not trusted either."""
    run = build_run(tmp_path)
    write(run.verdict, verdict_json(metric="<b>\x1b"))
    write(run.resolved_recipe, "name: '<i>x'\n")
    write(run.stage("prepare") / "samples.json", [{"row": 1, "tokens": [{"text": "\ud800\n", "id": 5}]}])
    page = page_of(run)
    assert not {"b\x1b", "i"} & set(page.tags)
    assert "\ufffd\u21b5" in page.words


def test_report_has_no_network_access(tmp_path: Path) -> None:
    """The page has no external references and forbids them; only its own script may run."""
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


def test_every_link_has_one_target(tmp_path: Path) -> None:
    page = page_of(build_run(tmp_path))
    names = [value for name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert {value[1:] for name, value in page.attributes if name == "href"} <= set(names)


def test_report_of_a_moved_run_has_the_same_bytes(tmp_path: Path) -> None:
    """It contains no path and no time of the machine."""
    first = page_of(build_run(tmp_path / "here")).source
    second = page_of(build_run(tmp_path / "there")).source
    assert first == second
    assert str(tmp_path) not in first


def test_embedded_rows_are_limited(tmp_path: Path) -> None:
    """Rows that got worse are always among the embedded ones."""
    run = build_run(tmp_path, rows=MAX_EMBEDDED_ROWS + 300, until="evaluate")
    scores = [
        {"id": f"r{row}", "execution": float(row < MAX_EMBEDDED_ROWS + 299)} for row in range(MAX_EMBEDDED_ROWS + 300)
    ]
    write(run.evaluation("tuned") / "scores.jsonl", scores)
    write(run.evaluation("base") / "scores.jsonl", [{**score, "execution": 1.0} for score in scores])
    page = page_of(run)
    assert len(page.payload["rows"]) == MAX_EMBEDDED_ROWS
    assert page.payload["rows"][-1][3] == "broken"
    assert "2,000 of the 2,300 rows" in page.words
    assert len(page.source) < 3_000_000


def test_answer_filters_follow_the_metric(tmp_path: Path) -> None:
    """Right and wrong answers are fixed or broken; with graded scores, answers are better or worse."""
    run = build_run(tmp_path)
    assert set(page_of(run).payload["badges"]) == {"all", "fixed", "broken", "right", "wrong", "changed"}
    scores = [{"id": f"r{row}", "execution": 0.5} for row in range(150)]
    write(run.evaluation("tuned") / "scores.jsonl", scores)
    assert set(page_of(run).payload["badges"]) == {"all", "fixed", "broken", "even", "changed"}


def test_rows_of_a_text_task_have_no_reference(tmp_path: Path) -> None:
    """Perplexity is computed from the likelihoods of the rows."""
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
    assert page.payload["rows"][0][6][1][1] == ["7.39"]


def with_samples(run: RunDir) -> RunDir:
    """Give each row of a run three samples, of which half are right at random."""
    draw = random.Random(1)
    for name in ("base", "tuned"):
        folder, answers, scores = run.evaluation(name), [], []
        for line in map(json.loads, (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()):
            rights = [draw.random() < 0.5 for _ in range(3)]
            for sample in (1, 2, 3):
                text = line["reference"] if rights[sample - 1] else f"sample {sample} of {name}"
                answers.append({**line, "sample": sample, "prediction": text})
            values = [float(right) for right in rights]
            scores.append({"id": line["id"], "execution": sum(values) / 3, "execution@pass3": float(any(values)),
                           "samples": {"execution": values}})  # fmt: skip
        draw.shuffle(answers)  # they are stored in the order in which they finish
        write(folder / "generations.jsonl", answers)
        write(folder / "scores.jsonl", scores)
    stored = verdict_json()
    stored["metrics"]["execution@pass3"] = {**stored["metrics"]["exact_match"], "metric": "execution@pass3"}
    write(run.verdict, stored)
    return run


def test_report_shows_each_row_once_with_all_samples_and_pass_at_k(tmp_path: Path) -> None:
    run = with_samples(build_run(tmp_path, rows=30))
    answers = collect(run).answers
    assert answers is not None
    assert len(answers.rows) == 30
    for row in answers.rows:
        for side in row.sides:
            assert side is not None
            assert len(side.more) == 2
            assert list(side.scores) == ["execution"]
            right = sum(text == row.reference for text in (side.text, *side.more))
            assert side.scores["execution"] == pytest.approx(right / 3)
    page = page_of(run)
    assert "execution accuracy, pass@3" in page.words
    assert plain(page.words).count("2 more samples") == 2 * 20
    assert [len(row[6][0][3]) for row in page.payload["rows"]] == [2] * 30
    assert "(sample 1 of 3)" in side_by_side(run, 2)
    assert "execution accuracy, pass@3" in side_by_side(run, 2)
