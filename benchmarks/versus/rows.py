"""The rows of the benchmarks: real ones if `../shared/data` has them, else those of the demo."""

import csv
import json
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from tunesmith.demo.generate import rows as demo_rows

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
_DEMO_ROWS = 1500

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows {prompt, response}; `instead` is the reason if they replace the wanted ones."""

    rows: list[Row]
    instead: str | None = None


def rows_of(name: str, count: int, *, shared: Path = SHARED) -> Rows:
    """Return `count` rows of `dialogsum` or `viggo`, repeated if there are fewer."""
    read = {"dialogsum": _dialogsum, "viggo": _viggo}[name]
    rows = read(shared)
    instead = None
    if not rows:
        instead = f"the {name} rows do not exist (../shared/data/{name}); the demo's rows replace them"
        rows = [{"prompt": row["question"], "response": row["sql"]} for row in demo_rows(_DEMO_ROWS, seed=0)]
    return Rows(list(islice(cycle(rows), count)), instead)


def _dialogsum(shared: Path) -> list[Row]:
    path = shared / "dialogsum" / "dialogsum.train.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        dialogues = [json.loads(line) for line in file]
    return [
        {"prompt": f"Summarize the dialogue.\n\n{dialogue['dialogue']}", "response": dialogue["summary"]}
        for dialogue in dialogues
    ]


def _viggo(shared: Path) -> list[Row]:
    path = shared / "viggo" / "viggo-train.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{"prompt": dialogue["mr"], "response": dialogue["ref"]} for dialogue in csv.DictReader(file)]


def varied(rows: list[Row], count: int) -> list[Row]:
    """Return many different rows from few: each repetition adds its number."""
    return [
        {**rows[i % len(rows)], "prompt": f"{rows[i % len(rows)]['prompt']}\n(number {i // len(rows)})"}
        for i in range(count)
    ]
