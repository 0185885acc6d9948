"""Rows that say the same, or nearly: within train (duplicates), and in valid and test as in train (leakage)."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.progress import say
from tunesmith.data.examine import Examined
from tunesmith.data.mix import spoken
from tunesmith.data.similarity import Texts
from tunesmith.recipe.schema import Recipe

_EXAMPLES = 5
HELD_OUT = ("valid", "test")


def find_copies(used: Mapping[str, Sequence[Examined]], threshold: float) -> dict[str, Any]:
    """Return {near_copy, duplicates, valid, test}: how many rows have an exact and a near copy in train, and examples.

    Prompt and answer are compared together: rows that ask alike and answer differently are no copies. Of `duplicates`,
    a row's copy stands before it.

    Args:
        used: the rows of each split, each once.
        threshold: from which similarity on rows are near copies.
    """
    rows = [row for split in ("train", *HELD_OUT) for row in used[split]]
    said = [spoken(row.example) for row in rows if row.example]
    texts = Texts("\n".join(turn.text for turn in row.example.turns) for row in rows if row.example)
    train = range(len(used["train"]))
    first: dict[str, int] = {}
    for place in train:
        first.setdefault(said[place], place)
    distinct = sorted(first.values())
    found: dict[str, Any] = {"near_copy": threshold}
    begin = 0
    for name, split in (("duplicates", "train"), ("valid", "valid"), ("test", "test")):
        mine = range(begin, begin + len(used[split]))
        begin = mine.stop
        exact = {place: (of, 1.0) for place in mine if (of := first.get(said[place])) is not None and of != place}
        near = texts.nearest([place for place in mine if place not in exact], distinct, threshold)
        pairs = sorted((exact | near).items(), key=lambda pair: (-pair[1][1], pair[0]))
        examples = [
            {"row": rows[place].entry.where, "of": rows[of].entry.where, "similarity": round(likeness, 3)}
            for place, (of, likeness) in pairs[:_EXAMPLES]
        ]
        found[name] = {"rows": len(mine), "exact": len(exact), "near": len(near), "examples": examples}
    return found


def refuse_leakage(copies: Mapping[str, Any], recipe: Recipe) -> None:
    """Say on stderr which held-out rows have copies in train, or raise DataError where the recipe says `stop`."""
    lines = [line for split in HELD_OUT if (line := leakage_sentence(copies, split))]
    if lines and recipe.data.leakage == "stop":
        raise DataError(
            "; ".join(lines),
            where="data.leakage",
            hint="remove them, or keep such rows in one split with data.split.by; `leakage: warn` only says it",
        )
    for line in lines:
        say(f"warning: {line}")


def leakage_sentence(copies: Mapping[str, Any], split: str) -> str | None:
    """Return in words how many rows of a split have copies in train, with pairs; None where there are none."""
    found = copies[split]
    if not found["exact"] + found["near"]:
        return None
    pairs = ", ".join(f"{one['row']} like {one['of']} ({one['similarity']:g})" for one in found["examples"])
    kinds = f"{found['exact']} exactly, {found['near']} nearly"
    return f"{found['exact'] + found['near']} of {found['rows']} {split} rows stand in train too ({kinds}): {pairs}"
