"""The section `promote`: the model and alias in the registry, and what a tuned model must be better than."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.recipe.base import Section, checked_by
from tunesmith.recipe.guards import Name
from tunesmith.registry.names import check_alias

Alias = Annotated[str, checked_by(check_alias)]


class Promote(Section):
    """Promotion of a tuned model that is better than the base."""

    model: Name = Field(description="Name of the model in the registry.")
    alias: Alias = Field("staging", description="Alias that is moved to the new version.")
    min_gain: float = Field(0.0, description="The gain over the base, with its whole interval, must be above this.")
    against: tuple[Literal["base", "incumbent"], ...] = Field(
        ("base", "incumbent"),
        min_length=1,
        description="What the tuned model must be better than: its `base`, and the `incumbent`, the version that the "
        "alias points at. The incumbent answers the same rows; the interval of the gain over it must be above 0.",
    )
    mirror: Literal["mlflow"] | None = Field(None, description="Second registry for the version (extra `mlflow`).")
