"""Prepare training: load the model, add adapters, shard, choose the fast path and the micro-batches."""

import os
from contextlib import suppress
from typing import Any

import torch

from tunesmith.architecture.base_model import require_embedding_rows
from tunesmith.architecture.families import shapes_of
from tunesmith.architecture.shapes import Shapes
from tunesmith.core.errors import RecipeError
from tunesmith.core.progress import log
from tunesmith.core.rundir import SPLITS, RunDir
from tunesmith.data.fit import (
    MemoryBudget,
    check_max_positions,
    check_packing_supported,
    choose_sharding,
    fit_micro_batches,
    make_micro_batch_policy,
)
from tunesmith.data.microbatch import MicroBatchPolicy
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.distributed.fsdp import load_device, memory_budget, shard
from tunesmith.distributed.process_group import current_group
from tunesmith.estimate.hardware import available_memory_gib
from tunesmith.fetch.reference import ModelFolder
from tunesmith.kernels.causality_check import require_causal_attention
from tunesmith.kernels.fast_path import enable_fast_path
from tunesmith.kernels.oom import OomRetry
from tunesmith.kernels.packed_attention import has_packed_attention
from tunesmith.kernels.packing_check import attention_window, has_dropout, packing_unsupported_reason
from tunesmith.model.adapters import open_model
from tunesmith.model.load import ComputeConfig, compute_config, max_positions, stored_dtype
from tunesmith.model.memory import free_memory, return_freed_memory_at_once
from tunesmith.model.quantization import quantization_of
from tunesmith.model.trainable import enable_activation_checkpointing, make_trainable
from tunesmith.objectives.base import Objective, require_columns
from tunesmith.recipe.launch import Sharding, shard_count
from tunesmith.recipe.schedule import plan_steps
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.tuning import FullTuning
from tunesmith.tasks.tokenizer import TokenizerAdapter
from tunesmith.train.loop import INITIAL_LOSS_SCALE, Setup
from tunesmith.train.resource_monitor import reset_peak_memory


def build_setup(
    recipe: Recipe, run: RunDir, base: ModelFolder, tokenizer: TokenizerAdapter, objective: Objective
) -> Setup:
    """Load the model and return everything that the training loop needs to start from step 0.

    Raises:
        RecipeError: rows are longer than the model can read, or the model is not causal.
    """
    compute, group = compute_config(recipe), current_group()
    if compute.device.type == "cpu" and os.environ.get("SLURM_GPUS_ON_NODE"):
        log("warning: the job has GPUs but torch finds none, so this trains on the CPU; is torch a CPU-only build?")
    reset_peak_memory(compute.device)
    tokens = TokenDataset(run.tokens("train"))
    require_columns(objective, tokens)
    budget, cpu_gib = memory_budget(compute, group), available_memory_gib() / group.rank_info.local_world_size
    shapes, added = _known_shapes(base), len(tokenizer.new_ids)
    sharding = _agree_on_sharding(recipe, shapes, tokens, budget, added)
    model = load_model_to_train(recipe, base, load_device(compute, sharding), tokenizer, is_sharded=sharding != "none")
    splits = [TokenDataset(path) for split in SPLITS if (path := run.tokens(split)).exists()]
    check_max_positions(max_positions(model), max(rows.max_length for rows in splits))
    highest_id, embedding = max(rows.max_token_id for rows in splits), model.get_input_embeddings().weight
    require_embedding_rows(highest_id, int(embedding.shape[0]), where=recipe.model.base)
    model = make_trainable(model, recipe.tuning, seed=recipe.seed, new_tokens=tokenizer.new_ids)
    if recipe.train.activation_checkpointing:
        enable_activation_checkpointing(model)
        if compute.device.type == "cpu":
            return_freed_memory_at_once()  # activation checkpointing trades speed for memory; so does this
    if sharding != "none":
        by_node, offload = sharding == "node", recipe.launch.offload
        shard(model, compute, group, by_node=by_node, offload=offload, master_dtype=_master_dtype(recipe))
    require_causal_attention(model, tokens, tokenizer.pad_id, compute)
    plan = plan_steps(recipe, len(tokens))
    plain_path = enable_fast_path(model, tokens, tokenizer.pad_id, compute)
    for name, reason in plain_path.items():
        log(f"fast path: {name} are not used: {reason}")
    policy = _micro_batch_policy(recipe, model, tokens, tokenizer.pad_id, budget, compute)
    if sharding != "none":
        free_memory()  # the first passes allocated memory on a separate stream for each layer
    expected = None
    if shapes is not None:
        shards = shard_count(sharding, group.rank_info.world_size, group.rank_info.local_world_size)
        policy, expected = fit_micro_batches(recipe, shapes, tokens, policy, budget, new_tokens=added, shards=shards)
        if expected.total > budget.available_gib:
            log(f"warning: training needs about {expected.total:.1f} of {budget.available_gib:.1f} available GiB")
        if expected.offloaded > cpu_gib:
            log(f"warning: offloading needs about {expected.offloaded:.1f} of {cpu_gib:.1f} available GiB on the CPU")
    scale = INITIAL_LOSS_SCALE if compute.dtype == torch.float16 else 1.0
    return Setup(
        recipe, plan, compute, model, tokens, tokenizer.pad_id, OomRetry(policy, lockstep=sharding != "none"), scale,
        expected, plain_path, group, sharding, objective,
    )  # fmt: skip


def _master_dtype(recipe: Recipe) -> torch.dtype | None:
    """Full fine-tuning keeps fp32 master weights and computes in less by autocast; LoRA never updates the base."""
    return torch.float32 if isinstance(recipe.tuning, FullTuning) else None


def load_model_to_train(
    recipe: Recipe, base: ModelFolder, compute: ComputeConfig, tokenizer: TokenizerAdapter, *, is_sharded: bool
) -> Any:
    """Load the base with all its adapters merged.

    A model that is to be sharded keeps its stored dtype if that loses nothing: its weights then stay memory-mapped
    files, which the ranks of a machine share, and `shard` converts each shard to the master dtype.
    """
    settings: dict[str, Any] = {
        "attention": recipe.model.attention, "merged": True, "quantization": quantization_of(recipe),
        "new_rows": tokenizer.new_rows,
    }  # fmt: skip
    master_dtype = _master_dtype(recipe)
    if is_sharded and master_dtype and base.base is None and not tokenizer.new_ids and (stored := stored_dtype(base)):
        model = open_model(base, compute, dtype=stored, **settings)
        # Constants that the model computes when it is built would be rounded to the stored dtype.
        if stored == master_dtype or not any(buffer.dtype == stored for buffer in model.buffers()):
            return model
        del model
    return open_model(base, compute, dtype=master_dtype or compute.dtype, **settings)


def _micro_batch_policy(
    recipe: Recipe, model: Any, tokens: TokenDataset, pad_id: int, budget: MemoryBudget, compute: ComputeConfig
) -> MicroBatchPolicy:
    """Return how rows are divided into micro-batches; they are packed if the model provably keeps rows apart."""
    never = recipe.train.packing == "never"
    reason = None if never else packing_unsupported_reason(model, tokens, pad_id, compute)
    check_packing_supported(recipe, reason)
    if reason:
        log(f"packing is not used: {reason}")
    return make_micro_batch_policy(
        recipe, budget, can_pack=reason is None, share_prefix=not has_dropout(model),
        packed_attention=has_packed_attention(model), attention_window=attention_window(model),
    )  # fmt: skip


def _known_shapes(base: ModelFolder) -> Shapes | None:
    """Return the shapes for the memory estimate; None if they are unknown, since training works without it."""
    with suppress(RecipeError):
        return shapes_of(base.root.path)
    return None


def _agree_on_sharding(
    recipe: Recipe, shapes: Shapes | None, tokens: TokenDataset, budget: MemoryBudget, new_tokens: int
) -> Sharding:
    """Return the sharding for all ranks; with `auto`, the model is sharded if it does not fit on any one of them."""
    requested, group = recipe.launch.sharding, current_group()
    if not group.is_distributed:
        if requested in ("full", "node"):
            log(f"launch.sharding: {requested} has no effect on one process")
        return "none"
    if recipe.launch.offload and not budget.on_gpu:
        log("launch.offload has no effect on a CPU")
    if shapes is None:
        return "none" if requested == "auto" else requested
    own = choose_sharding(recipe, shapes, tokens, budget, group.rank_info.world_size, new_tokens=new_tokens)
    agreed: Sharding = next((sharding for sharding in group.all_gather(own) if sharding != "none"), "none")
    if requested == "auto" and agreed != "none":
        log(f"sharding the layers over all processes: the model does not fit into {budget.available_gib:.1f} GiB")
    return agreed
