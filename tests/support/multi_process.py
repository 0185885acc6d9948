"""What a process does in the tests of many that train together: started by torchrun, or called where there is one.

torchrun --nproc-per-node 2 tests/support/multi_process.py MODEL ROWS OUT CASES
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from tunesmith.model.adapters import make_trainable, trained_parameters
from tunesmith.model.load import ComputeConfig, load_base
from tunesmith.objectives.sft import SFT
from tunesmith.recipe.schedule import plan_steps
from tunesmith.train.loop import Setup, measure, train_steps
from tunesmith.train.optim import make_optimizer

TUNINGS: dict[str, dict[str, Any]] = {"lora": {**LORA, "dropout": 0.0}, "full": FULL}
OBJECTIVES = {"sft": SFT, "pairs": PAIRS}
PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64}


def trained(
    model: Path, rows: Path, case: dict[str, Any], group: ProcessGroup
) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Train a tiny model; return what every step reported, then what a validation found, and the weights.

    Args:
        case: tuning, precision, micro_batch, packing, sharding and objective; `bad` is the rank whose first loss is to
            be NaN.
    """
    recipe = recipe_of(model, TUNINGS[case["tuning"]], examples_per_step=8, epochs=2)
    compute = ComputeConfig(torch.device("cpu"), PRECISIONS[case["precision"]])
    made = make_trainable(load_base(ModelFolder("x", model), compute, dtype=compute.dtype), recipe.tuning, seed=0)
    made.to(compute.dtype)  # the masters of adapters too, which are fp32 otherwise
    sharding = case.get("sharding", "none") if group.is_distributed else "none"
    if sharding != "none":
        two = ProcessGroup(
            replace(group.rank_info, local_world_size=group.rank_info.world_size // 2)
        )  # as on two machines
        shard(made, compute, two, by_node=sharding == "node")
    policy = MicroBatchPolicy(
        256, case["micro_batch"], case.get("packing", "never"), packed_attention=has_packed_attention(made)
    )
    tokens, fitting = TokenDataset(rows), OomRetry(policy)
    plan = plan_steps(recipe, len(tokens))
    setup = Setup(
        recipe,
        plan,
        compute,
        made,
        tokens,
        2,
        fitting,
        group=group,
        sharding=sharding,
        objective=OBJECTIVES[case.get("objective", "sft")],
    )
    if case.get("bad") == group.rank_info.rank:
        made.get_input_embeddings().weight.data[:] = float("nan")
    try:
        reports = list(train_steps(setup, make_optimizer(made, recipe.train), first_step=0))
    except NonFinite as error:
        return [str(error)], {}
    facts = [[one.loss, one.gradient_norm, one.tokens, one.trained_tokens] for one in reports]
    found = measure(setup, tokens)
    whole = gather_full_state_dict(made, keep=True)
    weights = {name: whole[name] for name, _ in trained_parameters(made)}
    return [*facts, [*found.values.values(), found.tokens]], weights


def main() -> None:
    """Train every case, and let every process leave what it found."""
    model, rows, out = map(Path, sys.argv[1:4])
    with join_process_group(rank_info()) as coordinator:
        for number, case in enumerate(json.loads(sys.argv[4])):
            facts, weights = trained(model, rows, case, coordinator.group)
            name = f"{number}-{coordinator.group.rank_info.rank}"
            (out / f"{name}.json").write_text(json.dumps(facts))
            save_file(weights, out / f"{name}.safetensors")
        coordinator.group.barrier()


if __name__ == "__main__":
    main()
