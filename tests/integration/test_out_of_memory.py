"""A run that really runs out of memory uses smaller micro-batches, with the same steps and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.support.tiny import recipe as write_recipe

from tunesmith.core.files import read_json
from tunesmith.core.jsonl import read_jsonl

# Limits a run's memory to this many MiB more than it has when its second step begins.
LIMITED = """
import re, resource, sys
from pathlib import Path
from tunesmith import run_recipe
from tunesmith.train import train as stage

steps = stage.train_steps

def limited(*arguments, **settings):
    for number, report in enumerate(steps(*arguments, **settings)):
        yield report
        if number == 0 and {mib}:
            held = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
            resource.setrlimit(resource.RLIMIT_AS, (held + {mib} * 2**20, resource.RLIM_INFINITY))

stage.train_steps = limited
run_recipe({recipe!r}, out={out!r}, until="train")
"""


def write_long_rows(path: Path) -> None:
    """Write rows of which a batch of 32 takes about a hundred MiB."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(120):
            file.write(json.dumps({"question": f"{i} " + "one two red " * 60, "answer": "blue cat"}) + "\n")


def trained(folder: Path, recipe: Path, mib: int) -> tuple[Path, str]:
    """Return a run whose process may take this many MiB more after its first step (0: no limit)."""
    out = folder / f"run-{mib}"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(recipe=str(recipe), out=str(out), mib=mib)],
        capture_output=True, text=True, check=False, timeout=500,
        # One arena and no cache of freed memory, so that the limit applies to tensors.
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's here")
def test_a_run_that_runs_out_of_memory_has_the_same_weights(tmp_path: Path, tiny: Path) -> None:
    recipe = write_recipe(
        tmp_path, tiny,
        train={"learning_rate": 0.01, "max_steps": 4, "examples_per_step": 32, "micro_batch": 32, "packing": "never",
               "valid_every_steps": 4},
    )  # fmt: skip
    write_long_rows(tmp_path / "rows.jsonl")
    free, said = trained(tmp_path, recipe, 0)
    assert "out of memory: retrying" not in said
    limited, said = trained(tmp_path, recipe, 24)
    assert "out of memory: retrying with" in said
    one, other = (list(filter(lambda line: line["kind"] == "step", read_jsonl(run / "train" / "metrics.jsonl")))
                  for run in (free, limited))  # fmt: skip
    assert [line["trained_tokens"] for line in one] == [line["trained_tokens"] for line in other]
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in other], rel=1e-5)
    step = read_json(free / "train" / "manifest.json")["steps"]
    weights = [load_file(run / "train" / "checkpoints" / f"step-{step:06d}" / "model" / "adapter_model.safetensors")
               for run in (free, limited)]  # fmt: skip
    for name, weight in weights[0].items():
        assert (weight - weights[1][name]).abs().max() < 1e-4, name
