"""Compare any models on the test rows of one run: other runs, versions, models of the hub, folders and endpoints.

A run with the same rows and settings is compared by its stored scores. The others answer the rows, each through its own
prompt template. Answers and scores are kept in the run, in `comparisons/`, and used again while nothing has changed.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tunesmith.core import interrupt
from tunesmith.core.errors import RecipeError
from tunesmith.core.files import MANIFEST, digest_of, read_json, seal_folder
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.locks import exclusive_lock
from tunesmith.core.records import Example
from tunesmith.core.rundir import RunDir
from tunesmith.evaluate.compare import compare_models
from tunesmith.evaluate.endpoint_answers import ask_endpoint
from tunesmith.evaluate.model_outputs import response_stats
from tunesmith.evaluate.model_scores import Outputs, evaluation_conditions, write_scores
from tunesmith.evaluate.other_model import ask_other_model, is_base, without_likelihoods
from tunesmith.fetch.reference import ModelFolder, resolve, resolve_tuned
from tunesmith.inference.endpoint import Endpoint
from tunesmith.inference.metric_inputs import scoring_inputs
from tunesmith.inference.prompts import read_selected_rows
from tunesmith.inference.scorer import Scorer
from tunesmith.recipe.load import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.report.comparison import ComparedModel, ModelComparison, Pair
from tunesmith.scoring.metrics import answer_metrics, likelihood_metrics
from tunesmith.scoring.verdict import MAX_CONFIDENCE, corrected_confidence

# Settings of `evaluate` that decide about the verdict, but neither about answers nor about scores.
_DECIDES_ONLY = ("metrics", "primary", "guards", "confidence", "rows")


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
    rows = _Rows(run)
    pairs = list(combinations(range(len(references)), 2))
    confidence = corrected_confidence(rows.recipe.evaluate.confidence, len(pairs))
    if confidence > MAX_CONFIDENCE + 1e-9:
        raise RecipeError(f"{len(pairs)} pairs are too many for intervals", code="usage", hint="compare fewer models")
    opened = [_open(reference) for reference in references]  # all, before the first is asked
    with interrupt.catch_signals():
        models = [rows.scored(*pair) for pair in zip(references, opened, strict=True)]
    return ModelComparison(
        run=str(run),
        metric=rows.recipe.evaluate.primary,
        confidence=rows.recipe.evaluate.confidence,
        models=tuple(models),
        pairs=tuple(Pair(i, j, rows.verdict(models[i], models[j], confidence)) for i, j in pairs),
        examples=tuple(rows.examples),
        references=tuple(rows.task_reference(example) for example in rows.examples),
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


def _open(reference: str) -> ModelFolder | Endpoint:
    return Endpoint.parse(reference) or resolve(reference)


class _Rows:
    """The test rows of a run, and how models are measured on them."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.recipe = run, load_recipe(run.resolved_recipe)
        self.examples, _ = read_selected_rows(run, "test", self.recipe.evaluate.rows, self.recipe.seed)
        self._scorer = Scorer(answer_metrics(self.recipe.evaluate.metrics), self.recipe, run, stage="evaluate")
        self._measured = _measured(self.recipe, run, self.recipe.evaluate.metrics)

    def scored(self, reference: str, model: ModelFolder | Endpoint) -> ComparedModel:
        """Return a model with its answers and scores, from a run's files if they have them."""
        digest = model.digest() if isinstance(model, ModelFolder) else digest_of([model.url, model.model])
        other = _run_of(reference)
        if other is not None and (found := self._from_run(reference, other, digest)):
            return found
        if stored := self._stored(model, digest):
            return self._read(reference, digest, stored)
        folder = self.run.path / "comparisons" / digest[:16]
        inputs: dict[str, Any] = {
            "model": digest,
            "prepare": digest_of((self.run.manifest("prepare") or {}).get("files")),
        }
        inputs |= {"measured": self._measured, "metrics": list(self.recipe.evaluate.metrics)}
        if not (folder / MANIFEST).exists() or read_json(folder / MANIFEST)["inputs"] != inputs:
            with exclusive_lock(self.run.lock):
                write_scores(folder, self.examples, self._ask(reference, model, folder), self._scorer)
                seal_folder(folder, inputs=inputs)
        return self._read(reference, digest, folder)

    def verdict(self, first: ComparedModel, second: ComparedModel, confidence: float) -> Any:
        """Return the verdict with the first model as base, in the metrics that both have."""
        recipe = self.recipe
        likelihoods = likelihood_metrics(recipe.evaluate.metrics)
        if likelihoods and not (first.reads_run_tokens and second.reads_run_tokens):
            recipe = without_likelihoods(recipe)
        settings = recipe.evaluate.model_copy(update={"confidence": confidence})
        return compare_models(
            recipe.model_copy(update={"evaluate": settings}),
            first.scores,
            second.scores,
            groups=[example.group for example in self.examples],
            min_gain=0.0,
            lower_is_better=self._scorer.lower_is_better,
        )

    def task_reference(self, example: Example) -> str | list[str]:
        """Return what an answer to a row is compared with."""
        return list(example.references) or example.turns[-1].text

    def _ask(self, reference: str, model: ModelFolder | Endpoint, folder: Path) -> Outputs:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        if isinstance(model, Endpoint):
            answers = ask_endpoint(model, self.recipe, self.examples, folder)
            return answers, [{} for _ in self.examples]
        return ask_other_model(reference, model, self.recipe, self.run, folder).outputs

    def _stored(self, model: ModelFolder | Endpoint, digest: str) -> Path | None:
        """Return the folder with the model's scores if it is the base or the tuned model of the run, else None."""
        if isinstance(model, Endpoint) or self.run.manifest("evaluate") is None:
            return None
        if digest == resolve_tuned(self.run).digest():
            return self.run.evaluation("tuned")
        return self.run.evaluation("base") if is_base(model, self.recipe, self.run) else None

    def _from_run(self, reference: str, other: RunDir, digest: str) -> ComparedModel | None:
        """Return the tuned model of an evaluated run by its stored scores; None if rows or settings are others."""
        if other.manifest("evaluate") is None:
            return None
        recipe, folder = load_recipe(other.resolved_recipe), other.evaluation("tuned")
        lines = {line["id"]: line for line in read_jsonl(folder / "scores.jsonl")}
        told = {line["id"]: line["reference"] for line in read_jsonl(folder / "generations.jsonl")}
        wanted = {example.id: self.task_reference(example) for example in self.examples}
        same_rows = lines.keys() == wanted.keys() and all(_listed(told[id_]) == _listed(wanted[id_]) for id_ in told)
        metrics = self.recipe.evaluate.metrics
        if not same_rows or not set(metrics) <= set(recipe.evaluate.metrics):
            return None
        if _measured(recipe, other, metrics) != self._measured:
            return None
        digests = [(read_json(one.verdict)["digests"] if one.verdict.exists() else {}) for one in (self.run, other)]
        same_tokens = digests[0].get("questions") == digests[1].get("questions")
        return self._read(reference, digest, folder, same_tokens=same_tokens)

    def _read(self, reference: str, digest: str, folder: Path, *, same_tokens: bool = True) -> ComparedModel:
        scores = {line["id"]: line for line in read_jsonl(folder / "scores.jsonl")}
        answers = {line["id"]: line for line in reversed(list(read_jsonl(folder / "generations.jsonl")))}
        ordered = [scores[example.id] for example in self.examples]
        return ComparedModel(
            reference,
            digest,
            scores=tuple(ordered),
            answers=tuple(answers.get(example.id) for example in self.examples),
            health=response_stats(list(answers.values())),
            reads_run_tokens=same_tokens and all("log_likelihood" in line for line in ordered),
        )


def _listed(reference: str | list[str]) -> list[str]:
    return reference if isinstance(reference, list) else [reference]


def _measured(recipe: Recipe, run: RunDir, metrics: Sequence[str]) -> dict[str, Any]:
    """Return everything besides rows and models that answers and scores depend on."""
    settings = recipe.evaluate.model_dump(mode="json", exclude=set(_DECIDES_ONLY))
    return {**settings, **scoring_inputs(metrics, recipe, run), "precision": evaluation_conditions(recipe)["precision"]}
