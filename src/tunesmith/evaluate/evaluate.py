"""STAGE 3: base and tuned answer the same test rows through one path -> generations, scores, verdict."""

import time
from collections.abc import Sequence
from typing import Any

from tunesmith.architecture.families import shapes_of
from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of, seal_folder, write_json, write_jsonl
from tunesmith.core.progress import say
from tunesmith.core.rundir import RunDir
from tunesmith.data.batches import TokenSet
from tunesmith.data.fit import fits_to_answer
from tunesmith.distributed.fsdp import room_of, shard, where_read
from tunesmith.distributed.process_group import Group, here
from tunesmith.estimate.throughput import remember_writing
from tunesmith.evaluate.compare import judge
from tunesmith.evaluate.inputs import inputs
from tunesmith.evaluate.subject import answer_all, health, likelihoods
from tunesmith.fetch.reference import ModelFolder, base_of, tuned_of
from tunesmith.inference.answerable import check_room
from tunesmith.inference.prompts import SAMPLES, Questions, questions_of, rows_of
from tunesmith.inference.scorer import Scorer
from tunesmith.kernels.causality_check import refuse_unless_causal
from tunesmith.model.adapters import open_model
from tunesmith.model.load import Machine, machine_of, most_positions
from tunesmith.model.memory import free_memory
from tunesmith.model.quantization import quantization_of
from tunesmith.recipe.launch import Sharding
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.validation import why_whole
from tunesmith.scoring.metrics import scored_on_answers, scored_on_likelihood
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.chatml import codec_of
from tunesmith.tasks.tokenizer import Codec


def evaluate(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Compare base and tuned on the test rows; return the manifest. `verdict.json` holds the result.

    Many processes share the rows; the first scores what all answered, and only it writes and has a manifest.
    """
    began = time.monotonic()
    stated, group = inputs(recipe, run), here()
    group.refuse_unlike(stated)
    models = {
        "base": base_of(run, recipe.model.base),
        "tuned": tuned_of(run),
    }
    codec = codec_of(models["base"], recipe.model.chat_markup)
    task = task_for(recipe.data, codec)
    scorer = Scorer(scored_on_answers(recipe.evaluate.metrics), recipe, run, stage="evaluate")
    examples, places = rows_of(run, "test", recipe.evaluate.rows, recipe.seed)
    questions = questions_of(examples if scorer.names else examples[:SAMPLES], recipe, task, codec)
    # Both before any is scored: others would wait for the first, which scores alone.
    found = {name: _subject(name, model, recipe, run, task, codec, questions, places) for name, model in models.items()}
    if not group.is_first:
        return {}
    scores, healths = {}, {}
    for name, (answered, measured) in found.items():
        lines: list[dict[str, Any]] = [
            {"id": e.id, "group": e.group, **one} for e, one in zip(examples, measured, strict=True)
        ]
        for metric in scorer.names:
            for line, value in zip(lines, scorer.score(metric, answered), strict=True):
                if value is not None:
                    line[metric] = value
        for line, answer in zip(lines, answered, strict=False):  # samples are fewer, if no metric reads answers
            if answer["error"] is not None:
                line["failed"] = answer["error"]
        write_jsonl(run.subject(name) / "scores.jsonl", lines)
        scores[name], healths[name] = lines, health(answered)
    groups = [e.group for e in examples]
    verdict = judge(recipe, scores["base"], scores["tuned"], groups=groups, lower_is_better=scorer.lower_is_better)
    digests = {name: model.digest() for name, model in models.items()}
    verdict |= {"health": healths, "digests": {"questions": questions.digest, **digests}}
    verdict["conditions"] = _conditions(recipe)
    if kept := verdict["conditions"]["quantization"]:
        verdict["reasons"].append(f"base and tuned both answered on weights in {kept}")
    write_json(run.verdict, verdict)
    return seal_folder(
        run.stage("evaluate"),
        stage="evaluate",
        inputs=stated,
        seconds=round(time.monotonic() - began, 3),
        verdict=verdict["verdict"],
    )


def _conditions(recipe: Recipe) -> dict[str, str | None]:
    """Return what holds for base and tuned alike, and is not in their files."""
    kept = quantization_of(recipe)
    words = {"precision": machine_of(recipe).precision, "quantization": str(kept) if kept else None}
    return {**words, "chat_markup": recipe.model.chat_markup}


def _subject(
    name: str,
    model: ModelFolder,
    recipe: Recipe,
    run: RunDir,
    task: Task,
    codec: Codec,
    questions: Questions,
    places: Sequence[int],
) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """Return what one model answers, and the likelihoods of the rows at `places`: empty where no metric needs them."""
    interrupt.check()
    on, group = machine_of(recipe), here()
    sharding = _sharding(recipe, model, on, group)
    started: dict[str, Any] = {}
    if name == "base":  # as training started from it: with adapters of its own folded in, kept and marked up alike
        started = {"merged": True, "quantization": quantization_of(recipe), "new_tokens": codec.new_ids}
    loaded = open_model(model, where_read(on, sharding), attention=recipe.model.attention, **started)
    if sharding != "none":
        loaded.requires_grad_(False)
        shard(loaded, on, group, by_node=sharding == "node", offload=recipe.launch.offload)
    if name == "base":  # what a model that sees later tokens scores says nothing
        refuse_unless_causal(loaded, TokenSet(run.tokens("test")), codec.pad_id, on)
    if scored_on_answers(recipe.evaluate.metrics) and (warning := check_room(questions, most_positions(loaded))):
        say(f"warning: {warning}")
    key = digest_of([questions.digest, model.digest(), _conditions(recipe)])

    def timed(tokens: int, seconds: float) -> None:
        if tokens and not group.is_many:
            remember_writing(model.root.digest(), recipe.tuning.method, tokens / seconds)

    answered = answer_all(name, loaded, questions, task, run.subject(name), key=key, timed=timed)
    measured: list[dict[str, float]] = [{} for _ in places]
    if scored_on_likelihood(recipe.evaluate.metrics):
        measured = likelihoods(loaded, TokenSet(run.tokens("test")), places, on, codec.pad_id)
    del loaded
    free_memory()
    return answered, measured


def _sharding(recipe: Recipe, model: ModelFolder, on: Machine, group: Group) -> Sharding:
    """Return what a process keeps of a model that answers: all of it, unless that has no room in any of them.

    Parts are put together for every token, so this is not what training does, where more has to have room.
    """
    if not group.is_many or recipe.launch.sharding == "none" or why_whole(recipe):
        return "none"
    try:
        shapes = shapes_of(model.root.path)
    except RecipeError:
        return "none"
    free_memory()  # of what was trained before
    if all(group.gather(shapes.encodes or fits_to_answer(recipe, shapes, room_of(on, group)))):
        return "none"
    say("every process keeps its part of the layers: all of the model has no room, so answers take long")
    return "full" if recipe.launch.sharding == "auto" else recipe.launch.sharding
