"""The stage `evaluate`: base and tuned answer the same test rows by the same code; their scores give the verdict."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunesmith.architecture.families import shapes_of
from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of, seal_folder, write_json
from tunesmith.core.jsonl import write_jsonl
from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.data.fit import fits_for_inference
from tunesmith.data.token_dataset import TokenDataset
from tunesmith.distributed.fsdp import load_device, memory_budget, shard
from tunesmith.distributed.process_group import ProcessGroup, current_group
from tunesmith.estimate.throughput import save_generation_speed
from tunesmith.evaluate.compare import compare_models
from tunesmith.evaluate.inputs import inputs
from tunesmith.evaluate.model_outputs import generate_answers, response_stats, score_likelihoods
from tunesmith.fetch.reference import ModelFolder, resolve_base, resolve_tuned
from tunesmith.inference.answerable import check_positions
from tunesmith.inference.prompts import UNSCORED_ANSWERS, Prompts, build_prompts, read_selected_rows
from tunesmith.inference.scorer import Scorer
from tunesmith.kernels.causality_check import require_causal_attention
from tunesmith.model.adapters import open_model
from tunesmith.model.load import ComputeConfig, compute_config, max_positions
from tunesmith.model.memory import free_memory
from tunesmith.model.quantization import quantization_of
from tunesmith.recipe.launch import Sharding
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.validation import sharding_unsupported_reason
from tunesmith.scoring.metrics import answer_metrics, likelihood_metrics
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.chatml import load_tokenizer
from tunesmith.tasks.tokenizer import TokenizerAdapter


def evaluate(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Compare base and tuned on the test rows, write `verdict.json`, and return the manifest.

    Ranks share the rows. Rank 0 scores the answers of all ranks and writes the files; other ranks return {}.
    """
    began = time.monotonic()
    stage_inputs, group = inputs(recipe, run), current_group()
    group.require_equal(stage_inputs)
    models = {"base": resolve_base(run, recipe.model.base), "tuned": resolve_tuned(run)}
    tokenizer = load_tokenizer(models["base"], recipe.model.chat_markup)
    task = task_for(recipe.data, tokenizer)
    scorer = Scorer(answer_metrics(recipe.evaluate.metrics), recipe, run, stage="evaluate")
    examples, rows = read_selected_rows(run, "test", recipe.evaluate.rows, recipe.seed)
    prompts = build_prompts(examples if scorer.names else examples[:UNSCORED_ANSWERS], recipe, task, tokenizer)
    # Run both models before scoring, because only rank 0 scores, and the other ranks would wait for it.
    outputs = {
        name: _run_model(name, model, recipe, run, task, tokenizer, prompts, rows) for name, model in models.items()
    }
    if not group.is_rank0:
        return {}
    scores, stats = {}, {}
    for name, (answers, likelihoods) in outputs.items():
        lines: list[dict[str, Any]] = [
            {"id": example.id, "group": example.group, **likelihood}
            for example, likelihood in zip(examples, likelihoods, strict=True)
        ]
        for metric in scorer.names:
            for line, value in zip(lines, scorer.score(metric, answers), strict=True):
                if value is not None:
                    line[metric] = value
        for line, answer in zip(lines, answers, strict=False):  # without metrics of answers, only a few rows have one
            if answer["error"] is not None:
                line["failed"] = answer["error"]
        write_jsonl(run.evaluation(name) / "scores.jsonl", lines)
        scores[name], stats[name] = lines, response_stats(answers)
    groups = [example.group for example in examples]
    verdict = compare_models(recipe, **scores, groups=groups, lower_is_better=scorer.lower_is_better)
    conditions, reasons = _conditions(recipe), verdict.reasons
    if quantization := conditions["quantization"]:
        reasons += (f"base and tuned were both evaluated with weights in {quantization}",)
    digests = {"questions": prompts.digest, **{name: model.digest() for name, model in models.items()}}
    verdict = replace(verdict, reasons=reasons, health=stats, digests=digests, conditions=conditions)
    write_json(run.verdict, verdict.to_json())
    seconds, outcome = round(time.monotonic() - began, 3), verdict.primary.verdict
    return seal_folder(run.stage("evaluate"), stage="evaluate", inputs=stage_inputs, seconds=seconds, verdict=outcome)


def _conditions(recipe: Recipe) -> dict[str, str | None]:
    """Return the settings that affect the answers of both models and are not in the models' files."""
    quantization = quantization_of(recipe)
    return {
        "precision": compute_config(recipe).precision,
        "quantization": str(quantization) if quantization else None,
        "chat_markup": recipe.model.chat_markup,
    }


def _run_model(
    name: str,
    model: ModelFolder,
    recipe: Recipe,
    run: RunDir,
    task: Task,
    tokenizer: TokenizerAdapter,
    prompts: Prompts,
    rows: Sequence[int],
) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """Return a model's answers to the prompts, and the likelihoods of test rows: empty if no metric needs them."""
    interrupt.check()
    compute, group = compute_config(recipe), current_group()
    sharding = _choose_sharding(recipe, model, compute, group)
    as_trained: dict[str, Any] = {}
    if name == "base":  # load it as training did: its own adapter merged, with the same quantization and new tokens
        as_trained = {"merged": True, "quantization": quantization_of(recipe), "new_tokens": tokenizer.new_ids}
    loaded = open_model(model, load_device(compute, sharding), attention=recipe.model.attention, **as_trained)
    if sharding != "none":
        loaded.requires_grad_(False)
        shard(loaded, compute, group, by_node=sharding == "node", offload=recipe.launch.offload)
    if name == "base":  # scores of a model that sees later tokens would be meaningless
        require_causal_attention(loaded, TokenDataset(run.tokens("test")), tokenizer.pad_id, compute)
    if answer_metrics(recipe.evaluate.metrics) and (warning := check_positions(prompts, max_positions(loaded))):
        log(f"warning: {warning}")
    key = digest_of([prompts.digest, model.digest(), _conditions(recipe)])

    answers, speed = generate_answers(name, loaded, prompts, task, run.evaluation(name), key=key)
    if speed and not group.is_distributed:
        save_generation_speed(model.root.digest(), recipe.tuning.method, speed)
    likelihoods: list[dict[str, float]] = [{} for _ in rows]
    if likelihood_metrics(recipe.evaluate.metrics):
        likelihoods = score_likelihoods(loaded, TokenDataset(run.tokens("test")), rows, compute, tokenizer.pad_id)
    del loaded
    free_memory()
    return answers, likelihoods


def _choose_sharding(recipe: Recipe, model: ModelFolder, compute: ComputeConfig, group: ProcessGroup) -> Sharding:
    """Return "none" if the whole model fits on every rank, otherwise the recipe's sharding.

    Training may be sharded even if inference is not: it needs more memory, and a sharded model is slow at inference,
    because it gathers its parameters for every token.
    """
    if not group.is_distributed or recipe.launch.sharding == "none" or sharding_unsupported_reason(recipe):
        return "none"
    try:
        shapes = shapes_of(model.root.path)
    except RecipeError:
        return "none"
    free_memory()  # the stage before may have left memory of training
    if all(group.all_gather(shapes.has_encoder or fits_for_inference(recipe, shapes, memory_budget(compute, group)))):
        return "none"
    log("the whole model does not fit on every rank, so it is sharded and generates slowly")
    return "full" if recipe.launch.sharding == "auto" else recipe.launch.sharding
