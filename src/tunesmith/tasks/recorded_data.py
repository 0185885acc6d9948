"""The `data` section that a model was trained with, from the model's card."""

from tunesmith.fetch.reference import CARD, ModelFolder
from tunesmith.recipe.data_record import load_data
from tunesmith.recipe.schema import Data


def recorded_data(model: ModelFolder) -> Data | None:
    """Return the `data` section that a model was trained with; None if its card has no record of one.

    Raises:
        RecipeError: another version of tunesmith wrote the record.
    """
    record = model.card.get("data")
    return load_data(record, model.path / CARD) if isinstance(record, dict) else None
