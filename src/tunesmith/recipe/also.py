"""Recipes for the further held-out sets of `evaluate.also`: each takes the place of the rows and metrics of a run."""

from tunesmith.recipe.data_source import Split
from tunesmith.recipe.schema import AlsoBase, ChatData, CompletionData, Data, Recipe, Seq2SeqData, TextData


def guarded_metric(entry: AlsoBase) -> str:
    """Return the metric of a set that must not drop."""
    return entry.primary or entry.metrics[0]


def recipe_of_set(recipe: Recipe, entry: AlsoBase) -> Recipe:
    """Return the recipe with a further held-out set in the place of its rows and metrics."""
    settings = {
        "metrics": entry.metrics, "primary": guarded_metric(entry), "guards": (), "also": (),
        "rows": entry.rows, "max_new_tokens": entry.max_new_tokens,
    }  # fmt: skip
    changes = {
        "data": _data(entry, recipe.data),
        "train": recipe.train.model_copy(update={"valid_metrics": ()}),
        "evaluate": recipe.evaluate.model_copy(update=settings),
        "promote": None,
    }
    return recipe.model_copy(update=changes)


def _data(entry: AlsoBase, training: Data) -> Data:
    """Return a set as a `data` section: all its rows are test rows, and training rows are reported as in the run."""
    [kind] = [kind for kind in (TextData, CompletionData, Seq2SeqData, ChatData) if isinstance(entry, kind)]
    values = {key: getattr(entry, key) for key in kind.model_fields}
    # `Split` itself refuses to leave no rows to train on.
    values["split"] = Split.model_construct(valid=0.0, test=1.0, by=entry.split.by, column=None)
    return kind.model_construct(**{**values, "leakage": training.leakage})
