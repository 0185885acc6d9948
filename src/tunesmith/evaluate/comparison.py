"""Compare any models on the test rows of one run: other runs, versions, models of the hub, folders and endpoints.

A run with the same rows and settings is compared by its stored scores. The others answer the rows, through the prompt
template that each was trained with.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import digest_of, read_json
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.rundir import RunDir
from tunesmith.evaluate.endpoint_answers import ask_endpoint
from tunesmith.evaluate.model_scores import Outputs
from tunesmith.evaluate.run_rows import RunRows, measured
from tunesmith.fetch.reference import ModelFolder, resolve
from tunesmith.inference.endpoint import Endpoint
from tunesmith.recipe.load import load_recipe
from tunesmith.report.comparison import ComparedModel, ModelComparison, Pair
from tunesmith.scoring.verdict import MAX_CONFIDENCE, corrected_confidence


def compare_references(references: Sequence[str], on: Path | None = None) -> ModelComparison:
    """Compare two or more models or runs pairwise on the test rows of one run, with its metrics and limits.

    The intervals of all pairs hold together at the recipe's confidence.

    Args:
        references: names of models, folders of runs, and endpoints as URL#MODEL.
        on: the folder of the run; by default the first reference that is an evaluated run.

    Raises:
        RecipeError: no run gives the rows, a model cannot be found or asked, or two references are the same.
        DataError: a model's prompt template needs other columns.
        Interrupted: another process is writing to the run.
    """
    if len(set(references)) < len(references):
        raise RecipeError("a model is named twice", code="usage", hint="name each model once")
    run = RunDir.existing(on) if on else _first_run(references)
    if run.manifest("prepare") is None:
        hint = f"tunesmith prepare {run}"
        raise RecipeError("has no prepared rows", where=str(run), code="not-evaluated", hint=hint)
    rows = RunRows(load_recipe(run.resolved_recipe), run, evaluated=run.manifest("evaluate") is not None)
    pairs, settings = list(combinations(range(len(references)), 2)), rows.recipe.evaluate
    confidence = corrected_confidence(settings.confidence, len(pairs))
    if confidence > MAX_CONFIDENCE + 1e-9:
        raise RecipeError(f"{len(pairs)} pairs are too many for intervals", code="usage", hint="compare fewer models")
    opened = [Endpoint.parse(reference) or resolve(reference) for reference in references]  # before the first is asked
    with interrupt.catch_signals():
        models = [_scored(rows, *pair) for pair in zip(references, opened, strict=True)]
    return ModelComparison(
        run=str(run),
        metric=settings.primary,
        confidence=settings.confidence,
        models=tuple(models),
        pairs=tuple(Pair(i, j, rows.compare(models[i], models[j], confidence)) for i, j in pairs),
        examples=tuple(rows.examples),
        references=tuple(rows.reference(example) for example in rows.examples),
    )


def _first_run(references: Sequence[str]) -> RunDir:
    run = next((run for run in map(_run_of, references) if run is not None and run.manifest("evaluate")), None)
    if run is None:
        hint = "name the run whose test rows count: --on RUN"
        raise RecipeError("none of them is an evaluated run", code="usage", hint=hint)
    return run


def _run_of(reference: str) -> RunDir | None:
    """Return the run that a reference names; None for a checkpoint of a run, or anything else."""
    run = RunDir(Path(reference.removeprefix("run:")).expanduser())
    return run if run.resolved_recipe.exists() else None


def _scored(rows: RunRows, reference: str, model: ModelFolder | Endpoint) -> ComparedModel:
    """Return a model with its answers and scores, after asking it if no run has them."""
    digest = model.digest() if isinstance(model, ModelFolder) else digest_of([model.url, model.model])
    other = _run_of(reference)
    if other is not None and (found := _from_run(rows, reference, other, digest)):
        return found
    if not rows.has_scores(digest):
        with exclusive_lock(rows.run.lock):
            rows.store(digest, _ask(rows, reference, model, digest))
    return rows.read(reference, digest)


def _ask(rows: RunRows, reference: str, model: ModelFolder | Endpoint, digest: str) -> Outputs:
    if isinstance(model, ModelFolder):
        return rows.ask(reference, model)
    answers = ask_endpoint(model, rows.recipe, rows.examples, rows.folder(digest))
    return answers, [{} for _ in rows.examples]


def _from_run(rows: RunRows, reference: str, other: RunDir, digest: str) -> ComparedModel | None:
    """Return the tuned model of an evaluated run by its stored scores; None if rows or settings are others."""
    if other.manifest("evaluate") is None:
        return None
    recipe, metrics = load_recipe(other.resolved_recipe), rows.recipe.evaluate.metrics
    folder = other.evaluation("tuned")
    lines = {line["id"]: line for line in read_jsonl(folder / "scores.jsonl")}
    told = {line["id"]: line["reference"] for line in read_jsonl(folder / "generations.jsonl")}
    wanted = {example.id: rows.reference(example) for example in rows.examples}
    same_rows = lines.keys() == wanted.keys() and all(_listed(told[id_]) == _listed(wanted[id_]) for id_ in told)
    if not same_rows or not set(metrics) <= set(recipe.evaluate.metrics):
        return None
    if measured(recipe, other, metrics) != rows.measured:
        return None
    digests = [(read_json(run.verdict)["digests"] if run.verdict.exists() else {}) for run in (rows.run, other)]
    return rows.read(reference, digest, folder, same_tokens=digests[0].get("questions") == digests[1].get("questions"))


def _listed(reference: str | list[str]) -> list[str]:
    return reference if isinstance(reference, list) else [reference]
