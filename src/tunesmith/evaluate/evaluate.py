"""STAGE 3: base and tuned answer the same test rows through one path -> generations, scores, verdict."""

import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import DataError
from tunesmith.core.files import digest_of, read_jsonl, seal_folder, write_json, write_jsonl
from tunesmith.core.records import Example
from tunesmith.core.rundir import RunDir
from tunesmith.data.batches import TokenSet
from tunesmith.data.split import choose
from tunesmith.evaluate.inputs import inputs
from tunesmith.evaluate.judge import judge
from tunesmith.evaluate.subject import Questions, answer_all, health, likelihoods
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.model.adapters import open_model
from tunesmith.model.load import machine_of
from tunesmith.model.quantized import quantization_of
from tunesmith.recipe.schema import Recipe, TextData
from tunesmith.scoring.metrics import LIKELIHOOD, expand, score
from tunesmith.scoring.own import OwnMetric, own_metrics
from tunesmith.tasks import task_for
from tunesmith.tasks.base import Task
from tunesmith.tasks.markup import codec_of
from tunesmith.tasks.tokenizer import Codec

# Answers that nothing scores are still worth reading: how many of them are made.
_SAMPLES = 20


def evaluate(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Compare base and tuned on the test rows; return the manifest. `verdict.json` holds the result."""
    began = time.monotonic()
    stated = inputs(recipe, run)
    base = resolve(recipe.model.base, relative_to=run.origin)
    tuned = resolve(f"run:{run.path.resolve()}", relative_to=run.origin)
    codec = codec_of(base, recipe.model.chat_markup)
    task = task_for(recipe.data, codec)
    own = own_metrics(recipe.evaluate.metrics, run.origin)
    examples, places = _chosen(recipe, run)
    scores, conditions, digests = {}, {}, {}
    for name, model in (("base", base), ("tuned", tuned)):
        interrupt.check()
        lines, generations, digest = _subject(name, model, recipe, run, task, codec, examples, places, own)
        write_jsonl(run.subject(name) / "scores.jsonl", lines)
        scores[name], conditions[name], digests[name] = lines, health(generations), digest
    if digests["base"] != digests["tuned"]:
        raise DataError("base and tuned were not asked the same, so they cannot be compared")
    lower = [metric for metric, one in own.items() if not one.higher_is_better]
    groups = [e.group for e in examples]
    verdict = judge(recipe, scores["base"], scores["tuned"], groups=groups, lower_is_better=lower)
    verdict |= {"health": conditions, "digests": {"questions": digests["base"], "base": base.digest()}}
    verdict["digests"]["tuned"] = tuned.digest()
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


def _chosen(recipe: Recipe, run: RunDir) -> tuple[list[Example], list[int]]:
    """Return the examples to ask about and their places in the split's token file."""
    everything = [Example.from_json(line) for line in read_jsonl(run.examples("test"))]
    chosen = choose([e.id for e in everything], recipe.evaluate.rows, recipe.seed)
    first = {e.id: place for place, e in reversed(list(enumerate(everything))) if e.id in chosen}
    places = sorted(first.values())  # equal rows are asked about once
    return [everything[place] for place in places], places


def _subject(
    name: str,
    model: ModelFolder,
    recipe: Recipe,
    run: RunDir,
    task: Task,
    codec: Codec,
    examples: Sequence[Example],
    places: Sequence[int],
    own: Mapping[str, OwnMetric],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Return (scores a row, generations, digest of what was asked) of one model."""
    on = machine_of(recipe)
    started: dict[str, Any] = {}
    if name == "base":  # as training started from it: with adapters of its own folded in, kept and marked up alike
        started = {"merged": True, "quantization": quantization_of(recipe), "new_tokens": codec.new_ids}
    loaded = open_model(model, on, attention=recipe.model.attention, **started)
    scored = expand([metric for metric in recipe.evaluate.metrics if metric not in LIKELIHOOD])
    asked = list(examples) if scored else list(examples)[:_SAMPLES]
    prompts = tuple(tuple(task.prompt(e.turns)) for e in asked)
    settings = recipe.evaluate
    questions = Questions(
        tuple(asked), prompts, task.stop_ids, settings.max_new_tokens, task.opening_ids, settings.beams
    )
    texts = [prompt_text(e, ids, codec, recipe) for e, ids in zip(asked, prompts, strict=True)]
    key = digest_of([questions.digest, model.digest(), _conditions(recipe)])
    generations = answer_all(name, loaded, questions, task, run.subject(name), prompt_texts=texts, key=key)
    lines: list[dict[str, Any]] = [{"id": e.id} for e in examples]
    if set(recipe.evaluate.metrics) & set(LIKELIHOOD):
        for line, found in zip(
            lines, likelihoods(loaded, TokenSet(run.tokens("test")), places, on, codec.pad_id), strict=True
        ):
            line |= found
    if scored:
        values = _scores([metric for metric in scored if metric not in own], own, generations, recipe, run)
        for i, line in enumerate(lines):
            line |= {metric: found[i] for metric, found in values.items()}
    del loaded
    gc.collect()
    return lines, generations, questions.digest


def _scores(
    built_in: Sequence[str],
    own: Mapping[str, OwnMetric],
    generations: Sequence[dict[str, Any]],
    recipe: Recipe,
    run: RunDir,
) -> dict[str, list[float]]:
    """Return {metric: [value per generation]}."""
    predictions = [line["prediction"] for line in generations]
    references = [line["reference"] for line in generations]
    values = score(predictions, references, built_in, database=database_file(recipe, run))
    for found in values.values():
        found[:] = [0.0 if line["error"] is not None else value for line, value in zip(generations, found, strict=True)]
    # Nobody but a metric of the user's own knows what a failed row is worth to it: it sees an empty answer.
    return values | {metric: one(predictions, references) for metric, one in own.items()}


def prompt_text(example: Example, ids: Sequence[int], codec: Codec, recipe: Recipe) -> str:
    """Return a prompt as people read it: the turns, or the beginning of a document."""
    if isinstance(recipe.data, TextData):
        return codec.decode(ids)
    asked = example.turns[:-1]
    return "\n\n".join(turn.text if len(asked) == 1 else f"{turn.role}: {turn.text}" for turn in asked)


def database_file(recipe: Recipe, run: RunDir) -> Path | None:
    """Return the SQLite file that `execution` runs queries on, making the generated one if need be."""
    name = recipe.evaluate.database
    if name is None:
        return None
    if name == "generated:shop-sql":
        from tunesmith.demo.shop import write_database

        path = run.stage("evaluate") / "shop.sqlite"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_database(path)
        return path
    path = run.origin / name
    if not path.exists():
        raise DataError("no such database", where=str(path), hint="evaluate.database is relative to the recipe")
    return path
