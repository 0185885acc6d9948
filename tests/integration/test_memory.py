"""The peak memory of training is the estimate, measured in a separate process on the embedded model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.files import read_json

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the estimate was measured on Linux"),
]
TOLERANCE = 0.15
TRAIN = "from tunesmith import run_recipe; run_recipe({recipe!r}, out={out!r}, until='train')"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_is_the_expected_one(tmp_path: Path, smollm2: Path, precision: str) -> None:
    recipe = write_recipe(
        tmp_path, smollm2, model={"base": str(smollm2), "precision": precision}, tuning={"method": "lora", "rank": 16},
        train={"learning_rate": 1e-4, "max_steps": 2, "examples_per_step": 6, "valid_every_steps": 2},
    )  # fmt: skip
    lines = [{"question": f"{row} " + "one two red " * (20 + row % 10), "answer": "blue cat"} for row in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    facts = _trained(recipe, tmp_path / "run")
    assert facts["precision"] == precision
    assert facts["expected_memory_gib"] / facts["peak_memory_gib"] == pytest.approx(1, abs=TOLERANCE)


def _trained(recipe: Path, out: Path) -> dict[str, Any]:
    """Train in a separate process and return the manifest."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN.format(recipe=str(recipe), out=str(out))],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(read_json(out / "train" / "manifest.json"))
