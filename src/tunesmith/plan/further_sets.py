"""Check the further held-out sets of a recipe before the run, and count their rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tunesmith.core.progress import log
from tunesmith.core.rundir import RunDir
from tunesmith.data.dataset import PreparedRows, UsedRows, build_set
from tunesmith.data.inputs import set_inputs
from tunesmith.data.prepare import errors_of_set
from tunesmith.data.rehearsal import rehearse
from tunesmith.data.spool import Spool
from tunesmith.fetch.reference import ModelFolder
from tunesmith.inference.prompts import select_examples
from tunesmith.pipeline.checks import check_set
from tunesmith.recipe.also import guarded_metric, recipe_of_set
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_for
from tunesmith.tasks.tokenizer import TokenizerAdapter


@dataclass(frozen=True, slots=True)
class SetPlan:
    """A further held-out set in a plan.

    Attributes:
        rows: rows that both models are asked about, of `all_rows`.
        units: independent units among them: groups of rows.
        tokens: tokens of these rows, which each model reads.
        longest: tokens of the longest row.
        metric: the metric that may drop by less than `max_drop`.
    """

    name: str
    rows: int
    all_rows: int
    units: int
    tokens: int
    longest: int
    metric: str
    max_drop: float


@dataclass(frozen=True, slots=True)
class SetPlans:
    """All further held-out sets of a recipe: their plans, their rows as those of recipes, and warnings about them."""

    plans: list[SetPlan] = field(default_factory=list)
    rows: list[tuple[Recipe, UsedRows]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def plan_sets(
    recipe: Recipe,
    run: RunDir,
    base: ModelFolder,
    positions: int | None,
    tokenizer: TokenizerAdapter,
    rows: UsedRows,
    *,
    seconds: float,
) -> SetPlans:
    """Read and check all further held-out sets.

    Args:
        positions: the model's maximum; None if it has none, or if it is unknown.
        rows: the rows of the run, for a warning of training rows in a set.
        seconds: about how long each metric is rehearsed.

    Raises:
        RecipeError: the model cannot read or answer the rows of a set.
        DataError: the rows of a set cannot be read or used.
    """
    wanted, found = set_inputs(recipe, run), SetPlans()
    for entry in recipe.evaluate.also:
        own = recipe_of_set(recipe, entry)
        task, folder = task_for(own.data, tokenizer), run.recipe_folder
        with errors_of_set(entry.name):
            prepared = _prepared(run.further_set(entry.name), wanted[entry.name])
            set_rows = prepared or build_set(
                own, task, folder=folder, model=base, trained=rows, name=entry.name, spool=Spool()
            )
            notes = rehearse(
                own, task, set_rows, run.further_set(entry.name), is_prepared=prepared is not None, seconds=seconds
            )
        found.warnings.extend(f"{entry.name}: {note}; `prepare` reads all of them before training" for note in notes)
        found.warnings.extend(check_set(recipe, entry, positions, tokenizer, set_rows))
        entries = set_rows.ledger_entries("test")
        lengths = {row.id: row.tokens for row in entries}
        asked = select_examples(set_rows, "test", entry.rows, recipe.seed)
        units = len({example.group for example in asked})
        found.plans.append(
            SetPlan(
                entry.name, len(asked), len(lengths), units, sum(lengths[example.id] for example in asked),
                max(lengths.values()), guarded_metric(entry), entry.max_drop,
            )
        )  # fmt: skip
        found.rows.append((own, set_rows))
    return found


def _prepared(folder: RunDir, wanted: Mapping[str, object]) -> PreparedRows | None:
    """Return the rows of a set that is prepared and unchanged, and log the remarks about them again; else None."""
    manifest = folder.manifest("prepare")
    if not manifest or manifest["inputs"] != wanted:
        return None
    for remark in manifest["remarks"]:
        log(f"{folder.path.name}: {remark}")
    return PreparedRows(folder)
