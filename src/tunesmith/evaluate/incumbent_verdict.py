"""Compare the tuned model with the incumbent, the version that its promotion would replace.

The result is a verdict with the incumbent in the place of the base. It is written to `incumbents/` of the run for the
report, and computed again by each promotion, from the answers that the run keeps.
"""

from dataclasses import replace

from tunesmith.core.errors import VerdictRefused
from tunesmith.core.files import write_json
from tunesmith.core.rundir import RunDir
from tunesmith.core.verdict import Verdict
from tunesmith.distributed.process_group import current_group
from tunesmith.evaluate.incumbent import refuse_incomparable
from tunesmith.evaluate.model_scores import Outputs, evaluation_conditions
from tunesmith.evaluate.run_rows import RunRows
from tunesmith.fetch.reference import resolve, resolve_tuned
from tunesmith.recipe.schema import Recipe
from tunesmith.registry.store import Version


class IncumbentComparison:
    """The comparison of a run's tuned model with a version: ask the version on all ranks, then judge on one.

    Raises:
        VerdictRefused: the version cannot be opened; also from the methods, if it cannot answer the rows.
    """

    def __init__(self, recipe: Recipe, run: RunDir, version: Version) -> None:
        self._recipe, self._run, self._version = recipe, run, version
        self._rows = RunRows(recipe, run, evaluated=True)
        self._outputs: Outputs | None = None
        with refuse_incomparable(version):
            self._model = resolve(str(version))

    def is_answered(self) -> bool:
        """Whether the run has the version's answers and scores already, or it is the run's base."""
        return self._rows.has_scores(self._model.digest())

    def require_comparable(self) -> None:
        """Raise VerdictRefused with the reason if the version cannot answer the rows."""
        with refuse_incomparable(self._version):
            self._rows.prompts_of(self._model)

    def ask(self) -> None:
        """Let the version answer the test rows, unless it has. All ranks call this."""
        if not current_group().run_on_rank0(self.is_answered):
            with refuse_incomparable(self._version):
                self._outputs = self._rows.ask(str(self._version), self._model)

    def judge(self) -> Verdict:
        """Compare the evaluated tuned model with the version, and write the verdict to the run."""
        rows, digest = self._rows, self._model.digest()
        if self._outputs is not None:
            rows.store(digest, self._outputs)
        incumbent, tuned = rows.read(str(self._version), digest), rows.read("tuned", resolve_tuned(self._run).digest())
        with refuse_incomparable(self._version):
            verdict = rows.compare(incumbent, tuned, self._recipe.evaluate.confidence)
        verdict = replace(verdict, conditions=evaluation_conditions(self._recipe))
        write_json(self._run.incumbent(str(self._version)), verdict.to_json())
        return verdict


def compare_with_incumbent(recipe: Recipe, run: RunDir, version: Version) -> Verdict:
    """Return the verdict with a version in the place of the base, after asking it if it was not asked in evaluation.

    Raises:
        VerdictRefused: the version cannot answer the rows.
    """
    comparison = IncumbentComparison(recipe, run, version)
    if not comparison.is_answered():
        if current_group().is_distributed:  # `promote` runs on rank 0 alone, and `ask` would wait for the other ranks
            comparison.require_comparable()
            raise VerdictRefused(
                "became the version to replace after this evaluation",
                where=str(version),
                code="not-comparable",
                hint=f"compare and promote in one process: tunesmith promote {run}",
            )
        comparison.ask()
    return comparison.judge()
