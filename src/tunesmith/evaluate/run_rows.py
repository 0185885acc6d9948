"""The test rows of one run, and the answers and scores of any models on them, kept in the run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.core.files import MANIFEST, digest_of, read_json, seal_folder
from tunesmith.core.jsonl import read_jsonl
from tunesmith.core.records import Example
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Verdict
from tunesmith.distributed.process_group import current_group
from tunesmith.evaluate.compare import compare_models, corpus_scores
from tunesmith.evaluate.model_outputs import response_stats
from tunesmith.evaluate.model_scores import Outputs, TestRows, evaluation_conditions, run_model, write_scores
from tunesmith.evaluate.own_prompts import OwnPrompts, changes_base, own_prompts, without_likelihoods
from tunesmith.fetch.reference import ModelFolder, resolve_base, resolve_tuned
from tunesmith.inference.metric_inputs import scoring_inputs
from tunesmith.inference.prompts import read_selected_rows
from tunesmith.inference.scorer import Scorer
from tunesmith.recipe.schema import Recipe
from tunesmith.report.comparison import ComparedModel
from tunesmith.scoring.metrics import answer_metrics, likelihood_metrics

# Settings of `evaluate` that decide about the verdict, but neither about answers nor about scores.
_DECIDES_ONLY = ("metrics", "primary", "guards", "confidence", "rows", "also", "lm_eval")


class RunRows:
    """The test rows of a run, and the scores of models on them.

    The base and the tuned model have theirs in `evaluate/`. Those of another model are in `comparisons/`, in a folder
    for its digest, and are used again while the rows, the metrics and the settings are the same.

    Args:
        evaluated: whether the scores in `evaluate/` may be used: they are there before any is read.
    """

    def __init__(self, recipe: Recipe, run: RunDir, *, evaluated: bool) -> None:
        self.recipe, self.run = recipe, run
        self.examples, self._indices = read_selected_rows(run, "test", recipe.evaluate.rows, recipe.seed)
        self._scorer = Scorer(answer_metrics(recipe.evaluate.metrics), recipe, run, stage="evaluate")
        self.measured = measured(recipe, run, recipe.evaluate.metrics)
        self._inputs = {
            "prepare": digest_of((run.manifest("prepare") or {}).get("files")),
            "measured": self.measured,
            "metrics": list(recipe.evaluate.metrics),
        }
        self._evaluated: dict[str, Path] = {}
        if evaluated:
            if not changes_base(recipe):
                self._evaluated[resolve_base(run, recipe.model.base).digest()] = run.evaluation("base")
            self._evaluated[resolve_tuned(run).digest()] = run.evaluation("tuned")

    def folder(self, digest: str) -> Path:
        """Return the folder for the answers and scores of a model."""
        return self._evaluated.get(digest) or self.run.comparison(digest)

    def has_scores(self, digest: str) -> bool:
        """Whether a model need not be asked."""
        if digest in self._evaluated:
            return True
        manifest = self.run.comparison(digest) / MANIFEST
        return manifest.exists() and read_json(manifest)["inputs"] == self._inputs_of(digest)

    def prompts_of(self, model: ModelFolder) -> OwnPrompts:
        """Return the rows as a model that the run did not train is asked about them.

        Raises:
            RecipeError: the model cannot be compared with those of the run.
            DataError: the rows do not fill the model's prompt template.
        """
        base = resolve_base(self.run, self.recipe.model.base)
        return own_prompts(model, base, self.recipe, self.examples, self.run.recipe_folder)

    def ask(self, name: str, model: ModelFolder) -> Outputs:
        """Let a model that the run did not train answer the rows. All ranks call this.

        Args:
            name: the name of the model in progress and logs.

        Raises:
            RecipeError, DataError: as `prompts_of`.
        """
        asked = self.prompts_of(model)
        test = TestRows.of(asked.recipe, self.run, asked.examples, self._indices, asked.task, asked.tokenizer)
        folder = self.folder(model.digest())
        current_group().run_on_rank0(partial((folder / MANIFEST).unlink, missing_ok=True))
        [outputs] = run_model(name, model, test, folder)
        return outputs

    def store(self, digest: str, outputs: Outputs, folder: Path | None = None) -> None:
        """Score a model's outputs, and seal the folder with its answers; by default `self.folder(digest)`."""
        folder = folder or self.folder(digest)
        folder.mkdir(parents=True, exist_ok=True)
        write_scores(folder, self.examples, outputs, self._scorer)
        seal_folder(folder, inputs=self._inputs_of(digest))

    def read(self, name: str, digest: str, folder: Path | None = None, *, same_tokens: bool = True) -> ComparedModel:
        """Return a model with its answers and scores.

        Args:
            folder: the folder that has them; by default that of `folder`.
            same_tokens: whether its likelihoods, if it has any, are of the tokens of this run.
        """
        folder = folder or self.folder(digest)
        scores = {line["id"]: line for line in read_jsonl(folder / "scores.jsonl")}
        answers: dict[str, list[dict[str, Any]]] = {}
        for line in read_jsonl(folder / "generations.jsonl"):
            answers.setdefault(line["id"], []).append(line)
        in_order = tuple(scores[example.id] for example in self.examples)
        return ComparedModel(
            name,
            digest,
            scores=in_order,
            answers=tuple(tuple(sorted(answers.get(one.id, ()), key=_sample)) for one in self.examples),
            health=response_stats([line for lines in answers.values() for line in lines]),
            reads_run_tokens=same_tokens and all("log_likelihood" in line for line in in_order),
        )

    def compare(self, first: ComparedModel, second: ComparedModel, confidence: float) -> Verdict:
        """Return the verdict with the first model in the place of the base, in the metrics that both have.

        Raises:
            RecipeError: the primary metric is not one of them.
        """
        recipe, likelihoods = self.recipe, likelihood_metrics(self.recipe.evaluate.metrics)
        reasons: list[str] = []
        if likelihoods and not (first.reads_run_tokens and second.reads_run_tokens):
            recipe = without_likelihoods(recipe)
            reasons = [f"{metric} was not compared: the models read different tokens" for metric in likelihoods]
        settings = recipe.evaluate.model_copy(update={"confidence": confidence})
        verdict = compare_models(
            recipe.model_copy(update={"evaluate": settings}),
            first.scores,
            second.scores,
            groups=[example.group for example in self.examples],
            min_gain=0.0,
            lower_is_better=self._scorer.lower_is_better,
        )
        lines = ([line for row in model.answers for line in row] for model in (first, second))
        return replace(
            verdict,
            reasons=(*verdict.reasons, *reasons),
            corpus=corpus_scores(self._scorer.names, *lines),
            health={"base": first.health, "tuned": second.health},
            digests={"base": first.digest, "tuned": second.digest},
        )

    def reference(self, example: Example) -> str | list[str]:
        """Return what an answer to a row is compared with."""
        return list(example.references) or example.turns[-1].text

    def _inputs_of(self, digest: str) -> Mapping[str, Any]:
        return {"model": digest, **self._inputs}


def measured(recipe: Recipe, run: RunDir, metrics: Sequence[str]) -> dict[str, Any]:
    """Return everything besides rows and models that answers and scores depend on."""
    settings = recipe.evaluate.model_dump(mode="json", exclude=set(_DECIDES_ONLY))
    return {**settings, **scoring_inputs(metrics, recipe, run), "precision": evaluation_conditions(recipe)["precision"]}


def _sample(line: Mapping[str, Any]) -> int:
    return int(line.get("sample") or 1)
