"""The rows that are measured on: real ones where they lie beside the repository, else the demo's."""

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
    """Rows {prompt, response}; `instead` says why they are not those that were asked for."""

    rows: list[Row]
    instead: str | None = None


def rows_of(name: str, count: int, *, shared: Path = SHARED) -> Rows:
    """Return `count` rows of `dialogsum` or `viggo`, over again where there are fewer."""
    read = {"dialogsum": _dialogsum, "viggo": _viggo}[name]
    found = read(shared)
    instead = None
    if not found:
        instead = f"the {name} rows are not beside the repository (shared/data/{name}), so the demo's stand in"
        found = [{"prompt": row["question"], "response": row["sql"]} for row in demo_rows(_DEMO_ROWS, seed=0)]
    return Rows(list(islice(cycle(found), count)), instead)


def _dialogsum(shared: Path) -> list[Row]:
    path = shared / "dialogsum" / "dialogsum.train.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        told = [json.loads(line) for line in file]
    return [{"prompt": f"Summarize the dialogue.\n\n{one['dialogue']}", "response": one["summary"]} for one in told]


def _viggo(shared: Path) -> list[Row]:
    path = shared / "viggo" / "viggo-train.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{"prompt": one["mr"], "response": one["ref"]} for one in csv.DictReader(file)]


def varied(rows: list[Row], count: int) -> list[Row]:
    """Return many rows made of few: every round over them says its number, so that no two are the same."""
    return [
        {**rows[i % len(rows)], "prompt": f"{rows[i % len(rows)]['prompt']}\n(number {i // len(rows)})"}
        for i in range(count)
    ]
