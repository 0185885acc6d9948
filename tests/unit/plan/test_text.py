"""The text of `tunesmith plan`, held by a golden file; TUNESMITH_UPDATE_GOLDEN=1 writes it."""

import os
from dataclasses import replace
from pathlib import Path

from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.estimate.communication import Communication
from tunesmith.estimate.disk import DiskEstimate
from tunesmith.estimate.memory import MemoryEstimate
from tunesmith.plan.evidence import Evidence
from tunesmith.plan.row_counts import RowCounts
from tunesmith.plan.run_plan import RunPlan
from tunesmith.plan.scaling import ClusterEstimate
from tunesmith.plan.workload import Workload
from tunesmith.recipe.schedule import StepPlan

GOLDEN = Path(__file__).with_name("plan.golden.txt")

ROWS = RowCounts(
    counts={"train": 1200, "valid": 40, "test": 60},
    sources={"rows.csv": {"train": 1200, "valid": 40, "test": 60}},
    blocks={"documents": 0, "blocks": 0}, dropped={}, filtered={}, cut={}, unused={},
    copies={key: {"exact": 0, "near": 0} for key in ("duplicates", "valid", "test")},
    tokens={"train": 60_000, "valid": 2000, "test": 3000},
    lengths={
        "train": {"histogram": [[0, 32, 900], [32, 64, 290], [64, 96, 10]], "max": 93, "median": 27, "p95": 60},
        "valid": {"histogram": [[0, 96, 40]], "max": 66, "median": 25, "p95": 51},
    },
)  # fmt: skip
WORKLOAD = Workload(
    validations=4, valid_rows=40, all_valid_rows=40, valid_tokens=2000, answered_valid_rows=0, test_rows=60,
    incumbent=None, read_tokens=0, generated_tokens=(2400, 7680), validation_seconds=None, is_measured=False,
    generation_seconds=None,
)  # fmt: skip
LOCAL = ClusterEstimate(
    nodes=1, processes=1, sharding="none", micro_batches=MicroBatchPolicy(1024),
    memory=MemoryEstimate(0.52, 0.02, 0.04, 1.05, 0.07, 0.34, 0.46, 0.6, 0.0, 4_884_480),
    memory_available=20.7, offloaded_available=None, step_tokens=800.0, tokens_per_second=None, communication=None,
    total_tokens_per_second=None,
)  # fmt: skip
PLAN = RunPlan(
    name="demo", run="runs/demo", base="org/model", method="lora", launch="local", rows=ROWS,
    steps=StepPlan(1200, 2400, 150, 8, 50, 50), select_best_by="loss", workload=WORKLOAD, also=[], lm_eval=[],
    incumbent=None, exports={},
    evidence=Evidence("rougeL", 60, 60, 60, 0.25, 0.1, 240),
    cluster=LOCAL, scaling=[],
    disk=DiskEstimate(0.2, 100.0, 0.0, 100.0), is_described=True, new_tokens={},
    stages={"prepare": "done", "train": "to do", "evaluate": "to do"}, warnings=(), scripts={}, slurm=None,
)  # fmt: skip

MIXED = replace(
    PLAN,
    rows=replace(
        ROWS,
        counts={"train": 1200, "valid": 0, "test": 60},
        sources={"a.csv": {"train": 700, "valid": 0, "test": 40}, "b.csv": {"train": 500, "valid": 0, "test": 20}},
        blocks={"documents": 300, "blocks": 1260}, dropped={"empty answer": 3}, filtered={"`score` is below 5": 24},
        cut={"longer than 93 tokens": 7}, unused={"beyond train_rows": 1100},
        copies={**ROWS.copies, "left_out": {"exact": 2, "near": 5}},
    ),
    workload=replace(WORKLOAD, valid_rows=0, all_valid_rows=0, valid_tokens=0, generation_seconds=(60.0, 180.0)),
    cluster=replace(LOCAL, tokens_per_second=145.0, total_tokens_per_second=(145.0, 145.0)),
    disk=DiskEstimate(0.2, 100.0, 0.5, 100.0), is_described=False,
    warnings=("data.split: only 60 test rows",),
)  # fmt: skip

SIZES = [
    {"nodes": 1, "processes": 4, "tokens_per_second": (900.0, 900.0), "fits": False, "at_best": False},
    {"nodes": 2, "processes": 8, "tokens_per_second": (1500.0, 1800.0), "fits": True, "at_best": False},
]
SLURM = replace(
    PLAN,
    method="full",
    launch="slurm, 4 processes on each of 2 nodes",
    select_best_by="rougeL",
    workload=replace(
        WORKLOAD, valid_rows=16, answered_valid_rows=5, validation_seconds=12.0, is_measured=True,
        generation_seconds=(60.0, 60.0),
    ),
    cluster=replace(
        LOCAL, nodes=2, processes=8, sharding="full", memory=replace(LOCAL.memory, offloaded=1.5),
        memory_available=None, offloaded_available=64.0, tokens_per_second=250.0,
        communication=Communication(0.1, 0.2), total_tokens_per_second=(1500.0, 1800.0),
    ),
    scaling=SIZES, scripts={"train": "#!/bin/bash\n#SBATCH --nodes=2"}, slurm="2026-01-01T12:00:00",
)  # fmt: skip

AT_BEST = replace(
    SLURM, cluster=replace(SLURM.cluster, communication=None), scaling=[{**size, "at_best": True} for size in SIZES],
    scripts={}, slurm=None,
)  # fmt: skip

EARLY = replace(
    PLAN,
    steps=replace(PLAN.steps, valid_every_steps=10, decay_steps=30, stop_after=3),
    exports={"merged": 0.5, "gguf-q8_0": 0.64},
)


def test_plan_text_is_that_of_the_golden_file() -> None:
    plans = {
        "local, no speed": PLAN,
        "mixed": MIXED,
        "slurm": SLURM,
        "slurm, bandwidths not stated": AT_BEST,
        "may stop early": EARLY,
    }
    text = "\n\n".join(f"### {name}\n{plan}" for name, plan in plans.items()) + "\n"
    if os.environ.get("TUNESMITH_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
