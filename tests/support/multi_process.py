"""The program of one rank in tests of distributed training: started by torchrun, or called for a single rank.

torchrun --nproc-per-node 2 tests/support/multi_process.py MODEL ROWS OUT CASES
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from tests.support.pairs import PAIRS
from tests.unit.train.conftest import FULL, LORA, recipe_of

from tunesmith.core.dist_env import rank_info
from tunesmith.core.errors import NonFinite
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.distributed.fsdp import shard
from tunesmith.distributed.process_group import ProcessGroup, join_process_group
from tunesmith.distributed.sharded_state import gather_full_state_dict
from tunesmith.fetch.reference import ModelFolder
from tunesmith.kernels.oom import OomRetry
from tunesmith.kernels.packed_attention import has_packed_attention
from tunesmith.model.load import ComputeConfig, load_base
from tunesmith.model.trainable import make_trainable, trained_parameters
from tunesmith.objectives.sft import SFT
from tunesmith.recipe.schedule import plan_steps
from tunesmith.train import muon
from tunesmith.train.loop import Setup, measure, train_steps
from tunesmith.train.optim import make_optimizer

TUNINGS: dict[str, dict[str, Any]] = {"lora": {**LORA, "dropout": 0.0}, "full": FULL}
OBJECTIVES = {"sft": SFT, "pairs": PAIRS}
PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64}


@patch.object(muon, "has_native_bf16", lambda device: False)  # products in bf16 would hide small differences
def train_case(
    model: Path, rows: Path, case: dict[str, Any], group: ProcessGroup
) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Train a tiny model; return the reports of all steps followed by validation values, and the trained weights.

    Args:
        case: tuning, optimizer, precision, micro_batch, packing, sharding and objective; on the rank `bad`, the first
            loss is NaN.
    """
    optimizer = case.get("optimizer", "adamw")
    recipe = recipe_of(model, TUNINGS[case["tuning"]], examples_per_step=8, epochs=2, optimizer=optimizer)
    compute = ComputeConfig(torch.device("cpu"), PRECISIONS[case["precision"]])
    trainable = make_trainable(load_base(ModelFolder("x", model), compute, dtype=compute.dtype), recipe.tuning, seed=0)
    trainable.to(compute.dtype)  # also the master weights of adapters, which are fp32 otherwise
    sharding = case.get("sharding", "none") if group.is_distributed else "none"
    if sharding != "none":
        as_two_machines = ProcessGroup(
            replace(group.rank_info, local_world_size=group.rank_info.world_size // 2)
        )  # as on two machines
        shard(trainable, compute, as_two_machines, by_node=sharding == "node")
    policy = MicroBatchPolicy(
        256, case["micro_batch"], case.get("packing", "never"), packed_attention=has_packed_attention(trainable)
    )
    tokens, oom_retry = TokenDataset(rows), OomRetry(policy)
    plan = plan_steps(recipe, len(tokens))
    setup = Setup(
        recipe,
        plan,
        compute,
        trainable,
        tokens,
        2,
        oom_retry,
        group=group,
        sharding=sharding,
        objective=OBJECTIVES[case.get("objective", "sft")],
    )
    if case.get("bad") == group.rank_info.rank:
        trainable.get_input_embeddings().weight.data[:] = float("nan")
    try:
        reports = list(train_steps(setup, make_optimizer(trainable, recipe.train), first_step=0))
    except NonFinite as error:
        return [str(error)], {}
    facts = [[report.loss, report.gradient_norm, report.tokens, report.trained_tokens] for report in reports]
    values, trained = measure(setup, tokens, range(len(tokens)), lambda done: None)
    state = gather_full_state_dict(trainable, keep=True)
    weights = {name: state[name] for name, _ in trained_parameters(trainable)}
    return [*facts, [*values.values(), trained]], weights


def main() -> None:
    """Train each case, and write the results of this rank."""
    model, rows, out = map(Path, sys.argv[1:4])
    with join_process_group(rank_info()) as coordinator:
        for number, case in enumerate(json.loads(sys.argv[4])):
            facts, weights = train_case(model, rows, case, coordinator.group)
            name = f"{number}-{coordinator.group.rank_info.rank}"
            (out / f"{name}.json").write_text(json.dumps(facts))
            save_file(weights, out / f"{name}.safetensors")
        coordinator.group.barrier()


if __name__ == "__main__":
    main()
