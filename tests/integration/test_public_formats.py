"""Files in the layouts of public datasets go from `init --from` to a verdict, or through `plan`, as they are."""

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.cases import Command
from tests.support.tiny import save_model

from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.rundir import RunDir
from tunesmith.recipe.load import load_recipe
from tunesmith.tasks.chatml import CHATML_TEMPLATE

pytestmark = pytest.mark.slow

CITIES = ("Paris", "Tokyo", "Lima", "Oslo", "Cairo", "Rome", "Accra", "Quito")
FEW = ("train.max_steps=1", "evaluate.rows=4", "evaluate.max_new_tokens=4", "model.precision=fp32")
TOOL = {"name": "weather", "description": "The weather of a city.", "parameters": {"type": "object"}}
Rows = Sequence[dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model whose chat template writes tools and calls."""
    return save_model(tmp_path_factory.mktemp("model"), "llama", template=CHATML_TEMPLATE)


def write_json(file: Path, rows: Rows) -> None:
    file.write_text(json.dumps(rows), encoding="utf-8")


def write_lines(file: Path, rows: Rows) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)


def write_csv(file: Path, rows: Rows) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def alpaca(i: int) -> dict[str, Any]:
    city = CITIES[i % 8]
    return {"instruction": f"Spell {city}, {i}.", "input": "" if i % 3 else "in capitals", "output": " ".join(city)}


def sharegpt(i: int) -> dict[str, Any]:
    call = {"name": "weather", "arguments": {"city": CITIES[i % 8], "day": i}}
    turns = [("human", f"Weather in {CITIES[i % 8]}, day {i}?"), ("function_call", json.dumps(call))]
    system = "Be brief." if i % 2 else ""
    conversation = [{"from": role, "value": text} for role, text in turns]
    return {"conversations": conversation, "system": system, "tools": json.dumps([TOOL])}


def thinking(i: int) -> dict[str, Any]:
    answer = f"<think>\n{i} and one.\n</think>\n\nIt is {i + 1}."
    return {"messages": [{"role": "user", "content": f"Add one to {i}."}, {"role": "assistant", "content": answer}]}


def nested(i: int) -> dict[str, Any]:
    row = {"gem_id": f"x-{i}", "source": f"city({CITIES[i % 8]}, {i})", "target": f"This is {CITIES[i % 8]}."}
    return {"row_idx": i, "row": {**row, "references": [row["target"], CITIES[i % 8]]}}


@pytest.mark.parametrize(
    ("file", "row", "settings", "primary"),
    [
        ("alpaca.json", alpaca, {"prompt": "{instruction}\n\n{input?}"}, "exact_match"),
        (
            "sharegpt.json",
            sharegpt,
            {"messages": "conversations", "tools": "tools", "system": "{system?}"},
            "tool_call_f1",
        ),
        ("thinking.jsonl", thinking, {"messages": "messages", "reasoning": "keep"}, "exact_match"),
        (
            "nested.jsonl.gz",
            nested,
            {"prompt": "{row.source}", "references": ("row.target", "row.references")},
            "exact_match",
        ),
    ],
    ids=["Alpaca", "ShareGPT with tools", "reasoning", "nested and compressed"],
)
def test_from_a_file_to_a_verdict(
    file: str,
    row: Callable[[int], dict[str, Any]],
    settings: dict[str, Any],
    primary: str,
    model: Path,
    tunesmith: Command,
    tmp_path: Path,
) -> None:
    data = tmp_path / file
    (write_json if file.endswith(".json") else write_lines)(data, [row(i) for i in range(60)])
    written = data.read_bytes()
    assert tunesmith("init", "--from", file, "--model", model).code == 0
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert {key: getattr(recipe.data, key) for key in settings} == settings
    assert tunesmith("run", "recipe.yaml", *FEW, "--out", "run").code == 0
    run = RunDir(Path("run"))
    verdict = read_json(run.verdict)
    assert (verdict["primary"]["metric"], verdict["primary"]["rows"]) == (primary, 4)
    assert verdict["health"]["tuned"]["failed"] == 0
    assert run.manifest("prepare")["dropped"] == {}  # type: ignore[index]
    references = [str(line["reference"]) for line in read_jsonl(run.evaluation("tuned") / "generations.jsonl")]
    assert all("<think>" not in text for text in references)
    assert data.read_bytes() == written


PAIRS = [{"question": f"How far is {CITIES[i % 8]} from here, in {i} steps?", "answer": f"{i}"} for i in range(90)]
VIGGO = [{"mr": f"inform(name[{CITIES[i % 8]}], year[{i // 3}])", "ref": f"{CITIES[i % 8]}, {i}."} for i in range(90)]
GLAIVE = [sharegpt(i) for i in range(90)]
MLX = [{"text": f"Q: how many {CITIES[i % 8]} {i}\nA: SELECT COUNT(*) FROM t WHERE c = {i}"} for i in range(90)]


@pytest.mark.parametrize(
    ("files", "write", "rows", "task", "own"),
    [
        ({"train.jsonl": 60, "valid.jsonl": 10, "test.jsonl": 20}, write_lines, MLX, "text", {"valid", "test"}),
        ({"train.jsonl": 60, "test.jsonl": 30}, write_lines, PAIRS, "chat", {"test"}),
        ({"glaive_toolcall_en.json": 90}, write_json, GLAIVE, "chat", set()),
        (
            {"viggo-train.csv": 50, "viggo-valid.csv": 15, "viggo-test.csv": 25},
            write_csv,
            VIGGO,
            "chat",
            {"valid", "test"},
        ),
        ({"alpaca_data.json": 90}, write_json, [alpaca(i) for i in range(90)], "chat", set()),
        ({"data.jsonl": 90}, write_lines, MLX, "text", set()),
    ],
    ids=["WikiSQL", "GSM8K", "Glaive", "ViGGO", "Alpaca", "one field"],
)
def test_plan_accepts_the_layout(
    files: dict[str, int],
    write: Callable[[Path, Rows], None],
    rows: Rows,
    task: str,
    own: set[str],
    model: Path,
    tunesmith: Command,
    tmp_path: Path,
) -> None:
    start = 0
    for name, count in files.items():
        write(tmp_path / name, rows[start : start + count])
        start += count
    assert tunesmith("init", "--from", next(iter(files)), "--model", model).code == 0
    data = load_recipe(tmp_path / "recipe.yaml").data
    assert data.task == task
    assert {name for name in ("valid", "test") if getattr(data, name) is not None} == own
    planned = tunesmith("plan", "recipe.yaml", "--json")
    counts = json.loads(planned.out)["counts"]
    assert planned.code == 0
    assert sum(counts.values()) == 90
    assert all(
        counts[name] == files[f"{stem}{name}{end}"] for name in own for stem, end in [_around(next(iter(files)))]
    )


def _around(train_file: str) -> tuple[str, str]:
    before, _, after = train_file.partition("train")
    return before, after
